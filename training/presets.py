"""The published recipes, and the digits recipe, as values of `run_config.py`.

Chosen by `--preset`. Sizes and sampling defaults are those of `model.config.PRESETS`; here is how
each is trained. How often a run is measured and saved is ours; all else is the published
training's, and a test compares it with the published tables.
"""

from model.config import PRESETS
from training.generator_stage import GeneratorLossConfig
from training.optimiser import OptimiserConfig
from training.order_annealing import OrderAnnealing
from training.pretrained import NetworksConfig
from training.run_config import GeneratorRecipe, TokenizerRecipe
from training.tokenizer_loss import TokenizerLossWeights
from training.trainer_config import TrainerConfig
from training.turns import DiscriminatorConfig


def _published_tokenizer(name: str, model: str) -> TokenizerRecipe:
    return TokenizerRecipe(
        name=name,
        tokenizer=PRESETS[model].tokenizer,
        losses=TokenizerLossWeights(
            l2=1.0, l1=0.1, lpips=1.0, convnext=0.1, gram=10.0, clip=0.7, adversarial=0.05
        ),
        discriminator=DiscriminatorConfig(start=100_000, learning_rate=1e-4, warmup_steps=10_000),
        networks=NetworksConfig(
            siglip2="google/siglip2-so400m-patch16-naflex", dino="facebook/dino-vits8"
        ),
        training=TrainerConfig(
            num_steps=200_000,
            batch_size=256,
            optimiser=OptimiserConfig(
                learning_rate=1e-4,
                final_learning_rate=1e-5,
                warmup_steps=10_000,
                beta1=0.9,
                beta2=0.999,
                weight_decay=0.0,
                max_grad_norm=1.0,
                encoder_scale=0.1,
            ),
            average_decay=0.999,
            validate_every=5_000,
            checkpoint_every=5_000,
            log_every=50,
            precision="bfloat16",
            held_out_batch=32,
        ),
    )


def _published_generator(name: str, dropout: float, num_steps: int) -> GeneratorRecipe:
    preset = PRESETS[name]
    quarter = num_steps // 4
    return GeneratorRecipe(
        name=name,
        generator=preset.generator,
        dropout=dropout,
        masking=GeneratorLossConfig(
            order_annealing=OrderAnnealing(start=2 * quarter, end=3 * quarter),
            class_dropout=0.1,
            mask_distribution="logit_normal",
        ),
        sampling=preset.sampling,
        training=TrainerConfig(
            num_steps=num_steps,
            batch_size=2048,
            optimiser=OptimiserConfig(
                learning_rate=4e-4,
                final_learning_rate=1e-5,
                warmup_steps=quarter,
                beta1=0.9,
                beta2=0.96,
                weight_decay=0.03,
                max_grad_norm=1.0,
            ),
            average_decay=None,
            validate_every=5_000,
            checkpoint_every=5_000,
            log_every=50,
            precision="bfloat16",
            held_out_batch=32,
        ),
    )


DIGITS_TOKENIZER = TokenizerRecipe(
    name="digits",
    tokenizer=PRESETS["digits"].tokenizer,
    losses=TokenizerLossWeights(l2=1.0, l1=0.1),
    training=TrainerConfig(
        num_steps=2000,
        batch_size=64,
        optimiser=OptimiserConfig(
            learning_rate=2e-3,
            final_learning_rate=1e-5,
            warmup_steps=100,
            beta1=0.9,
            beta2=0.999,
            weight_decay=0.0,
            max_grad_norm=1.0,
        ),
        average_decay=0.995,
        validate_every=250,
        checkpoint_every=250,
    ),
)

DIGITS_GENERATOR = GeneratorRecipe(
    name="digits",
    generator=PRESETS["digits"].generator,
    dropout=0.2,
    masking=GeneratorLossConfig(order_annealing=OrderAnnealing(start=1000, end=2000)),
    sampling=PRESETS["digits"].sampling,
    training=TrainerConfig(
        num_steps=3000,
        batch_size=64,
        optimiser=OptimiserConfig(
            learning_rate=1e-3,
            final_learning_rate=1e-5,
            warmup_steps=200,
            beta1=0.9,
            beta2=0.96,
            weight_decay=0.03,
            max_grad_norm=1.0,
        ),
        average_decay=0.999,
        validate_every=250,
        checkpoint_every=250,
    ),
)

TOKENIZERS: dict[str, TokenizerRecipe] = {
    "digits": DIGITS_TOKENIZER,
    "bar-fsq-16bits": _published_tokenizer("bar-fsq-16bits", "bar-b"),
    "bar-fsq-10bits-res512": _published_tokenizer("bar-fsq-10bits-res512", "bar-l-res512"),
}

GENERATORS: dict[str, GeneratorRecipe] = {
    "digits": DIGITS_GENERATOR,
    "bar-b-patch4": _published_generator("bar-b-patch4", 0.0, 250_000),
    "bar-b-patch2": _published_generator("bar-b-patch2", 0.0, 250_000),
    "bar-b": _published_generator("bar-b", 0.0, 250_000),
    "bar-l": _published_generator("bar-l", 0.2, 250_000),
    "bar-l-res512": _published_generator("bar-l-res512", 0.2, 125_000),
}
