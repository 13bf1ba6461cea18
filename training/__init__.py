"""Training: from pictures to a model directory that `bar serve --model DIR` loads.

Imports model/, never service/. Two stages, tokenizer and generator, share one trainer:

    pixels ──▶ tokenizer_stage ──▶ pretokenize ──▶ generator_stage ──▶ model directory
                      └────────────── trainer ───────────┘

A recipe (`digits.py`) says which data, sizes and numbers of steps; nothing else here knows digits.
"""
