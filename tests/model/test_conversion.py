"""Published models: nothing let in that does not fit, converted once, then a directory."""

import pickle
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from model import conversion, zoo
from model.checkpoint import load_model
from model.config import PRESETS
from model.conversion import generator_state, install, read_published, tokenizer_state
from model.errors import CheckpointError, DownloadError, ModelNotFoundError
from model.generator import Generator
from model.hub import Hub
from model.tokenizer import Tokenizer
from tests.model import tiny_published
from tests.model.fake_hub import FakeHub
from tests.model.tiny_published import NAME, PRESET, as_file

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def modules() -> tuple[Generator, Tokenizer]:
    """Build the tiny published model's modules, with random weights."""
    return tiny_published.build()


@pytest.fixture
def published(modules: tuple[Generator, Tokenizer]) -> State:
    """Return its generator's published state dict."""
    return tiny_published.published_generator(modules[0])


def _assert_same(state: State, module: nn.Module) -> None:
    expected = module.state_dict()
    assert state.keys() == expected.keys()
    for name, value in state.items():
        assert torch.equal(value, expected[name]), name


# -------------------------------------------------------------------- from published to ours


def test_a_published_generator_becomes_ours(
    modules: tuple[Generator, Tokenizer], published: State
) -> None:
    """Every tensor arrives unchanged under our name; rotary tables are left out."""
    _assert_same(generator_state(published, PRESET.generator, "file"), modules[0])


def test_rotary_tables_may_be_absent(
    modules: tuple[Generator, Tokenizer], published: State
) -> None:
    """A file without the computed tables is complete."""
    bare = {name: value for name, value in published.items() if "rope" not in name}
    assert len(bare) < len(published)
    _assert_same(generator_state(bare, PRESET.generator, "file"), modules[0])


@pytest.mark.parametrize("with_encoder", [True, False])
def test_a_published_tokenizer_becomes_ours(
    modules: tuple[Generator, Tokenizer], with_encoder: bool
) -> None:
    """With its encoder or, for serving, without what only an encoder needs."""
    published = tiny_published.published_tokenizer(modules[1])
    state = tokenizer_state(published, PRESET.tokenizer, "file", with_encoder)
    module = Tokenizer(PRESET.tokenizer, with_encoder)
    module.load_state_dict(modules[1].state_dict(), strict=with_encoder)
    _assert_same(state, module)


def test_serving_needs_no_published_encoder(modules: tuple[Generator, Tokenizer]) -> None:
    """A tokenizer file stripped of its encoder decodes; with its encoder it is incomplete."""
    published = tiny_published.published_tokenizer(modules[1])
    decoder = {n: v for n, v in published.items() if not n.startswith("encoder.")}
    tokenizer_state(decoder, PRESET.tokenizer, "file", with_encoder=False)
    with pytest.raises(CheckpointError, match=r"missing \(encoder\.siglip\.embeddings\.patch"):
        tokenizer_state(decoder, PRESET.tokenizer, "file", with_encoder=True)
    del decoder["quantize.out_proj.weight"]
    with pytest.raises(CheckpointError, match=r"1 missing \(quantize\.out_proj\.weight\)"):
        tokenizer_state(decoder, PRESET.tokenizer, "file", with_encoder=False)


@pytest.mark.parametrize(
    "prefix", ["_orig_mod.", "module.", "_orig_mod.module.", "module._orig_mod.", "module.module."]
)
def test_prefixes_of_wrappers_are_stripped(
    modules: tuple[Generator, Tokenizer], published: State, prefix: str
) -> None:
    """torch.compile's and DistributedDataParallel's prefixes fall away, in any order."""
    wrapped = {prefix + name: value for name, value in published.items()}
    _assert_same(generator_state(wrapped, PRESET.generator, "file"), modules[0])


def test_a_name_under_two_prefixes_is_refused(published: State) -> None:
    """Which of two tensors is meant cannot be known."""
    published["module.cls_token"] = published["cls_token"]
    with pytest.raises(CheckpointError, match="holds cls_token twice"):
        generator_state(published, PRESET.generator, "file")


def _without_a_key(state: State) -> None:
    del state["lm_head.ln_pre.weight"]


def _with_a_key_more(state: State) -> None:
    state["ema.decay"] = torch.zeros(1)


def _with_another_shape(state: State) -> None:
    state["pos_embed"] = state["pos_embed"][:, 1:]


def _with_other_rotary_tables(state: State) -> None:
    state["blocks.1.attn.rope.freqs_sin"] = state["blocks.1.attn.rope.freqs_sin"].flip(-1)


def _with_nan_in_rotary_tables(state: State) -> None:
    state["blocks.1.attn.rope.freqs_cos"] = torch.full((8, 16), torch.nan)


def _with_shorter_rotary_tables(state: State) -> None:
    state["blocks.1.attn.rope.freqs_cos"] = state["blocks.1.attn.rope.freqs_cos"][1:]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_without_a_key, "1 missing (lm_head.ln_pre.weight)"),
        (_with_a_key_more, "1 unexpected (ema.decay)"),
        (_with_another_shape, "pos_embed is [1, 131, 32] for [1, 132, 32]"),
        (_with_other_rotary_tables, "blocks.1.attn.rope.freqs_sin differs from the rotary table"),
        (_with_nan_in_rotary_tables, "freqs_cos differs from the rotary table of this grid by nan"),
        (_with_shorter_rotary_tables, "blocks.1.attn.rope.freqs_cos is [7, 16] for [8, 16]"),
    ],
)
def test_a_file_that_differs_is_refused(
    published: State, spoil: Callable[[State], None], message: str
) -> None:
    """Each difference is named, by the name that it has in the file."""
    spoil(published)
    with pytest.raises(CheckpointError, match=re.escape(message)) as refused:
        generator_state(published, PRESET.generator, "bar_tiny.bin")
    assert str(refused.value).startswith("bar_tiny.bin is not of this architecture")


def test_another_preset_is_refused(published: State) -> None:
    """A file of other sizes is refused with a count of what does not fit, in one line."""
    with pytest.raises(CheckpointError, match=r"bar_tiny.* missing .* of another shape") as refused:
        generator_state(published, PRESETS["bar-b"].generator, "bar_tiny.bin")
    assert len(str(refused.value)) < 1000


# ------------------------------------------------------------------------------- reading


class Code:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.write_text, (self.path, "ran"))


def test_code_in_a_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    """A file that would run something is not opened, whichever of the two formats it has."""
    modern, plain = tmp_path / "modern.bin", tmp_path / "plain.bin"
    modern.write_bytes(as_file({"cls_token": Code(tmp_path / "trace")}))
    plain.write_bytes(pickle.dumps(Code(tmp_path / "trace")))
    with pytest.raises(CheckpointError, match=r"holds more than tensors .* could run code"):
        read_published(modern)
    with pytest.raises(CheckpointError, match="truncated or no PyTorch file"):
        read_published(plain)
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize("share", [0.0, 0.1, 0.9, 0.999])
def test_a_truncated_file_is_refused(tmp_path: Path, published: State, share: float) -> None:
    """However much of it arrived, half a file is not read."""
    whole = as_file(published)
    path = tmp_path / "half.bin"
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(CheckpointError, match=r"half\.bin \(\d+ bytes\) is truncated"):
        read_published(path)


def test_a_damaged_index_is_refused(tmp_path: Path, published: State) -> None:
    """A file whose pickle is overwritten is reported, not half read."""
    whole = bytearray(as_file(published))
    position = whole.index(b"cls_token") - 20
    whole[position : position + 40] = bytes(40)
    path = tmp_path / "bad.bin"
    path.write_bytes(whole)
    with pytest.raises(CheckpointError, match=r"bad\.bin"):
        read_published(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.zeros(1)], "holds a list, not a state dict"),
        ({}, "holds a dict, not a state dict"),
        ({"model": {"cls_token": torch.zeros(1)}}, "1 entries .* the first is model"),
        ({"step": torch.tensor(3)}, "no floating-point tensors, the first is step"),
    ],
    ids=["list", "empty", "nested", "integers"],
)
def test_what_is_no_state_dict_is_refused(tmp_path: Path, content: object, message: str) -> None:
    """Only a plain mapping of names to floating-point tensors is taken."""
    path = tmp_path / "odd.bin"
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=message):
        read_published(path)


# ------------------------------------------------------------------------------- installing


@pytest.fixture
def server(
    modules: tuple[Generator, Tokenizer], monkeypatch: pytest.MonkeyPatch
) -> Iterator[FakeHub]:
    """Publish the tiny model on a hub, and add its preset."""
    monkeypatch.setitem(PRESETS, NAME, PRESET)
    with FakeHub() as server:
        server.commit(tiny_published.published_files(*modules))
        yield server


def test_a_published_model_is_installed_and_loaded(
    server: FakeHub, tmp_path: Path, modules: tuple[Generator, Tokenizer]
) -> None:
    """Download, conversion and loading give the published weights, without the encoder."""
    before = zoo.resolve(NAME, cache_dir=tmp_path)
    assert (before.directory, before.revision) == (None, "")
    info = install(NAME, cache_dir=tmp_path, endpoint=server.endpoint)
    assert info.name == NAME
    assert not info.has_encoder
    zoo.verify(info)
    generator, tokenizer = load_model(info)
    _assert_same(generator.state_dict(), modules[0])
    bits = torch.randint(0, 2, (2, 16, 3))
    assert torch.equal(tokenizer.decode(bits), modules[1].decode(bits))


def test_an_installed_model_needs_neither_network_nor_published_files(
    server: FakeHub, tmp_path: Path
) -> None:
    """Once converted it is found as it is, even when the downloads have been deleted."""
    info = install(NAME, cache_dir=tmp_path, endpoint=server.endpoint, keep_published=False)
    assert Hub("main", tmp_path).cached_files(tiny_published.FILES) is None
    server.requests.clear()
    assert install(NAME, cache_dir=tmp_path, endpoint=server.endpoint) == info
    assert install(NAME, cache_dir=tmp_path, offline=True) == info
    assert zoo.resolve(NAME, cache_dir=tmp_path) == info
    assert server.requests == []


def test_files_that_another_tool_fetched_are_converted_offline(
    server: FakeHub, tmp_path: Path
) -> None:
    """Published files in the client's cache are enough."""
    Hub("main", tmp_path, server.endpoint).download(tiny_published.FILES)
    server.requests.clear()
    assert zoo.resolve(NAME, cache_dir=tmp_path, offline=True).directory is None
    info = install(NAME, cache_dir=tmp_path, offline=True)
    assert info.directory is not None
    assert server.requests == []


def test_offline_without_the_files_is_refused(server: FakeHub, tmp_path: Path) -> None:
    """The error names the command that fetches them."""
    with pytest.raises(ModelNotFoundError, match=f"run `bar download {NAME}` while online"):
        install(NAME, cache_dir=tmp_path, endpoint=server.endpoint, offline=True)
    install(NAME, cache_dir=tmp_path, endpoint=server.endpoint, keep_published=False)
    with pytest.raises(ModelNotFoundError, match=r"published files .* are not on this machine"):
        install(NAME, cache_dir=tmp_path, offline=True, with_encoder=True)
    with pytest.raises(ValueError, match="offline and refresh exclude each other"):
        install(NAME, cache_dir=tmp_path, offline=True, refresh=True)


def test_a_moved_branch_is_followed_on_request_only(server: FakeHub, tmp_path: Path) -> None:
    """A server restarts with what it has; refreshing, or the old commit, chooses."""
    old = server.branches["main"]
    first = install(NAME, cache_dir=tmp_path, endpoint=server.endpoint)
    generator, tokenizer = tiny_published.build()
    with torch.no_grad():
        generator.trunk.cls_token.zero_()
    server.commit(tiny_published.published_files(generator, tokenizer))
    assert install(NAME, cache_dir=tmp_path, endpoint=server.endpoint) == first
    newer = install(NAME, cache_dir=tmp_path, endpoint=server.endpoint, refresh=True)
    assert newer.revision != first.revision
    assert zoo.resolve(NAME, cache_dir=tmp_path) == newer
    assert zoo.resolve(NAME, cache_dir=tmp_path, revision=old) == first


def test_the_encoder_is_added_when_it_is_asked_for(
    server: FakeHub, tmp_path: Path, modules: tuple[Generator, Tokenizer]
) -> None:
    """A serving copy becomes a training copy without another download or another revision."""
    serving = install(NAME, cache_dir=tmp_path, endpoint=server.endpoint)
    server.requests.clear()
    training = install(NAME, cache_dir=tmp_path, endpoint=server.endpoint, with_encoder=True)
    assert server.requests == []
    assert training == serving
    assert training.has_encoder
    _, tokenizer = load_model(training, with_encoder=True)
    _assert_same(tokenizer.state_dict(), modules[1])


def test_a_file_of_another_model_is_not_installed(
    server: FakeHub, tmp_path: Path, modules: tuple[Generator, Tokenizer]
) -> None:
    """A hub that serves the tokenizer as generator leaves nothing that would be loaded."""
    files = tiny_published.published_files(*modules)
    server.commit({**files, tiny_published.FILES[0]: files[tiny_published.FILES[1]]})
    with pytest.raises(CheckpointError, match=r"bar_tiny\.bin is not of this architecture"):
        install(NAME, cache_dir=tmp_path, endpoint=server.endpoint)
    assert zoo.resolve(NAME, cache_dir=tmp_path).directory is None


def test_a_refused_download_installs_nothing(server: FakeHub, tmp_path: Path) -> None:
    """The hub's refusal reaches the caller, and the model stays uninstalled."""
    server.refusal = (403, "GatedRepo")
    with pytest.raises(DownloadError, match="accept its terms"):
        install(NAME, cache_dir=tmp_path, endpoint=server.endpoint)
    assert zoo.resolve(NAME, cache_dir=tmp_path).directory is None


def test_two_installers_at_once_convert_once(
    server: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second waits for the first and takes what it made."""
    conversions: list[Path] = []

    def count(path: Path) -> State:
        conversions.append(path)
        return read_published(path)

    monkeypatch.setattr(conversion, "read_published", count)
    installed: list[zoo.ModelInfo] = []

    def run() -> None:
        installed.append(install(NAME, cache_dir=tmp_path, endpoint=server.endpoint))

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(installed) == 3
    assert installed[0] == installed[1] == installed[2]
    assert len(conversions) == 2


def test_a_cache_that_cannot_be_written_is_reported(server: FakeHub, tmp_path: Path) -> None:
    """A file where the cache's directory should be gives one line, not a traceback."""
    Hub("main", tmp_path, server.endpoint).download(tiny_published.FILES)
    (tmp_path / "assets").write_text("in the way")
    with pytest.raises(CheckpointError, match=r"cannot write .*assets"):
        install(NAME, cache_dir=tmp_path, offline=True)


def test_a_directory_is_installed_as_it_is(server: FakeHub, tmp_path: Path) -> None:
    """What is no published preset is read where it lies."""
    info = install(NAME, cache_dir=tmp_path / "cache", endpoint=server.endpoint)
    assert info.directory is not None
    copy = info.directory.rename(tmp_path / "copy")
    found = install(copy)
    assert (found.directory, found.revision) == (copy, info.revision)
