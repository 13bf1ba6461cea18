"""The pretrained SigLIP2 tower as the start of a tokenizer's encoder.

Called by `tokenizer_run.py` before the first step. Files are those on this machine; the hub's
client fetches them ahead of time. Both halves of the encoder start from the same weights: the
frozen one keeps them.
"""

from model.checkpoint import check_fit, shapes_of
from model.image_encoder import Siglip2Encoder
from training.errors import TrainingError

HEAD = "head."  # pools the picture for captions; an encoder has no use for it


def load_siglip2(encoder: Siglip2Encoder, name_or_dir: str) -> None:
    """Fill both halves of the encoder from a pretrained tower.

    Raises TrainingError if it is not on this machine, CheckpointError if it is of other sizes.
    """
    from transformers import Siglip2VisionModel  # noqa: PLC0415  the encoder needs it already

    try:
        tower = Siglip2VisionModel.from_pretrained(name_or_dir, local_files_only=True)
    except OSError as error:
        raise TrainingError(
            f"{name_or_dir} (about 4.5 GB as published) is not on this machine: run `hf download "
            f"{name_or_dir}`, name a folder with networks.siglip2, or set networks.siglip2=null to "
            "start from random weights"
        ) from error
    state = {
        name.removeprefix("vision_model."): value.float()
        for name, value in tower.state_dict().items()
    }
    state = {name: value for name, value in state.items() if not name.startswith(HEAD)}
    check_fit(shapes_of(state), shapes_of(encoder.frozen.state_dict()), name_or_dir)
    encoder.frozen.load_state_dict(state)
    encoder.trained.load_state_dict(encoder.frozen.encoder.state_dict())
    encoder.trained_norm.load_state_dict(encoder.frozen.post_layernorm.state_dict())
