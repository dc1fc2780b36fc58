"""flash_attention_2: its adapter with stand-in kernels here, its real kernels where a GPU is.

A stand-in has the signature of the kernel that it stands for, computes each
segment by itself with eager attention, checks what it is handed, and leaves NaN
behind the last segment, in gradients too, as a kernel that writes nothing there.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from gpt2 import GPT2LMHeadModel, GPT2Model
from gpt2.errors import BackendError
from gpt2.modeling import flash, placement
from gpt2.modeling.backends import attend_eager, get_backend
from gpt2.modeling.segments import causal_segments, encoder_segments, ragged_packing
from tests.helpers import assert_close, at_attended, relative_error, tiny_config, tiny_model
from tests.modeling.test_inputs import counted

FLASH = "flash_attention_2"
KERNELS = ("flash-attn", "torch 2.13", "torch 2.10")


class StandIns:
    """The kernels' places, taken; ``calls`` says what ran."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.dropout: list[float] = []

    def segments(
        self, q: Tensor, k: Tensor, v: Tensor, ends_q: Tensor, ends_k: Tensor, longest_q: int,
        longest_k: int, *, scale: float | None, causal: bool, dropout_p: float = 0.0,
    ) -> Tensor:  # fmt: skip
        assert type(longest_q) is int
        assert type(longest_k) is int
        assert q.dim() == k.dim() == v.dim() == 3
        pieces = []
        assert ends_q.dtype == ends_k.dtype == torch.int32
        assert ends_q.shape == ends_k.shape
        for i in range(len(ends_q) - 1):
            of_q, of_k = slice(ends_q[i], ends_q[i + 1]), slice(ends_k[i], ends_k[i + 1])
            one_q, one_k, one_v = (
                t[at].transpose(0, 1)[None] for t, at in ((q, of_q), (k, of_k), (v, of_k))
            )
            assert one_q.shape[2] <= longest_q
            assert one_k.shape[2] <= longest_k
            if one_q.shape[2] == 0:
                continue
            assert one_k.shape[2] > 0, "a query without a key"
            out = attend_eager(
                one_q, one_k, one_v, mask=None, causal=causal, dropout_p=dropout_p,
                scale=q.shape[-1] ** -0.5 if scale is None else scale,
            )  # fmt: skip
            pieces.append(out[0].transpose(0, 1))
        unwritten = q[ends_q[-1] :] * torch.nan
        nothing = torch.nan * (k[ends_k[-1] :].sum() + v[ends_k[-1] :].sum())
        if len(unwritten):
            unwritten = unwritten + nothing
        return torch.cat([*pieces, unwritten])

    def varlen_new(
        self, query: Tensor, key: Tensor, value: Tensor, cu_seq_q: Tensor, cu_seq_k: Tensor | None,
        max_q: int, max_k: int, *, return_aux: Any = None, scale: float | None = None,
        window_size: tuple[int, int] = (-1, -1), enable_gqa: bool = False, seqused_k: Any = None,
        block_table: Any = None, num_splits: int | None = None,
    ) -> Tensor:  # fmt: skip
        self.calls.append("varlen")
        assert window_size in ((-1, -1), (-1, 0))
        assert cu_seq_k is not None
        return self.segments(
            query, key, value, cu_seq_q, cu_seq_k, max_q, max_k,
            scale=scale, causal=window_size == (-1, 0),
        )  # fmt: skip

    def varlen_old(
        self, query: Tensor, key: Tensor, value: Tensor, cu_seq_q: Tensor, cu_seq_k: Tensor,
        max_q: int, max_k: int, is_causal: bool = False, return_aux: Any = None,
    ) -> Tensor:  # fmt: skip
        self.calls.append("varlen")
        return self.segments(
            query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, scale=None, causal=is_causal
        )

    def flash_attn_func(
        self, q: Tensor, k: Tensor, v: Tensor, dropout_p: float = 0.0,
        softmax_scale: float | None = None, causal: bool = False,
    ) -> Tensor:  # fmt: skip
        self.calls.append("flash_attn_func")
        self.dropout.append(dropout_p)
        assert softmax_scale is not None
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        return attend_eager(
            q, k, v, mask=None, scale=softmax_scale, causal=causal, dropout_p=dropout_p
        ).transpose(1, 2)

    def flash_attn_varlen_func(
        self, q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor,
        max_seqlen_q: int, max_seqlen_k: int, dropout_p: float = 0.0,
        softmax_scale: float | None = None, causal: bool = False,
    ) -> Tensor:  # fmt: skip
        self.calls.append("flash_attn_varlen_func")
        self.dropout.append(dropout_p)
        assert softmax_scale is not None
        return self.segments(
            q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k,
            scale=softmax_scale, causal=causal, dropout_p=dropout_p,
        )  # fmt: skip


@contextlib.contextmanager
def standing_in(monkeypatch: pytest.MonkeyPatch, which: str) -> Iterator[StandIns]:
    standins = StandIns()

    @contextlib.contextmanager
    def held_to(backend: Any) -> Iterator[None]:
        assert backend == torch.nn.attention.SDPBackend.FLASH_ATTENTION
        standins.calls.append("sdpa")
        yield  # any backend: the CPU's flash kernel knows no dropout

    package = None
    if which == "flash-attn":
        package = SimpleNamespace(
            flash_attn_func=standins.flash_attn_func,
            flash_attn_varlen_func=standins.flash_attn_varlen_func,
        )
    varlen = standins.varlen_old if which == "torch 2.10" else standins.varlen_new
    with monkeypatch.context() as patch:
        patch.setattr(flash, "_DEVICE", "cpu")
        patch.setattr(flash, "_DTYPES", (torch.float32, torch.float16, torch.bfloat16))
        arguments = frozenset(inspect.signature(varlen).parameters)
        patch.setattr(flash, "_kernels", flash._Kernels(package, varlen, arguments))
        patch.setattr(flash, "sdpa_kernel", held_to)
        patch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: True)
        yield standins


@pytest.fixture(params=KERNELS)
def standins(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    with standing_in(monkeypatch, request.param) as found:
        yield found


@pytest.fixture
def no_dense_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Tensor:
        raise AssertionError("a dense mask was made")

    monkeypatch.setattr(placement, "padded_causal_visibility", refuse)


# -- the contract of a backend ------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(5, 5), (1, 5), (3, 7), (1, 1)], ids=str)
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("dropout_p", [0.0, 1e-12], ids=["no dropout", "dropout"])
def test_equals_eager_without_a_mask(
    standins: StandIns, sizes: tuple[int, int], causal: bool, dropout_p: float
) -> None:
    """With a dropout that never strikes too, since it takes other kernels."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, n, 8, generator=generator) for n in (*sizes, sizes[1]))
    settings: dict[str, Any] = {"mask": None, "scale": 0.3, "causal": causal}
    found = get_backend(FLASH)(q, k, v, dropout_p=dropout_p, **settings)
    assert_close(found, attend_eager(q, k, v, dropout_p=0.0, **settings))
    assert len(standins.calls) == 1
    varlen = sizes == (3, 7) and causal and dropout_p == 0
    assert (standins.calls == ["varlen"]) == (varlen and standins.calls[0] != "flash_attn_func")


def key_masks() -> dict[str, Tensor]:
    rows = {
        "left": [[0, 0, 1, 1, 1, 1], [1] * 6, [0, 0, 0, 0, 0, 1]],
        "right": [[1, 1, 1, 1, 0, 0], [1] * 6, [1, 0, 0, 0, 0, 0]],
        "holes": [[0, 1, 0, 1, 1, 0], [1] * 6, [1, 0, 0, 1, 0, 1]],
        "empty row": [[0, 0, 0, 0, 0, 0], [1] * 6, [0, 0, 1, 1, 1, 1]],
    }
    return {name: torch.tensor(mask).bool() for name, mask in rows.items()}


@pytest.mark.parametrize("padding", key_masks())
@pytest.mark.parametrize("query_length", [6, 3, 1])
@pytest.mark.parametrize("dropout_p", [0.0, 1e-12], ids=["no dropout", "dropout"])
def test_equals_eager_over_segments(
    standins: StandIns, padding: str, query_length: int, dropout_p: float
) -> None:
    """Outputs and gradients of q, k and v; at padding, zeros."""
    key_mask = key_masks()[padding]
    generator = torch.Generator().manual_seed(0)
    sizes = (query_length, 6, 6)
    real = key_mask[:, -query_length:]
    weight = torch.randn(3, 2, query_length, 8, generator=generator) * real[:, None, :, None]
    tensors = [torch.randn(3, 2, n, 8, generator=generator) for n in sizes]
    found = []
    for backend, mask in (
        ("eager", placement.padded_causal_visibility(key_mask, query_length)),
        (FLASH, causal_segments(key_mask, query_length)),
    ):
        leaves = [t.clone().requires_grad_() for t in tensors]
        p = dropout_p if backend == FLASH else 0.0
        causal = backend == FLASH
        out = get_backend(backend)(*leaves, mask=mask, scale=0.3, causal=causal, dropout_p=p)
        (out * weight).sum().backward()
        found.append([out.masked_fill(~real[:, None, :, None], 0.0), *(t.grad for t in leaves)])
    assert (out.transpose(1, 2)[~real] == 0).all()
    for actual, expected in zip(found[1], found[0], strict=True):
        assert_close(actual, expected)
    assert set(standins.calls) <= {"flash_attn_varlen_func", "sdpa" if dropout_p else "varlen"}


def test_packing_puts_padding_last_and_back() -> None:
    real = torch.tensor([[0, 1, 1], [1, 0, 0], [0, 0, 0]]).bool()
    packing = ragged_packing(real)
    assert packing.order is not None
    assert packing.order.tolist() == [1, 2, 3, 0, 4, 5, 6, 7, 8]
    assert packing.ends.tolist() == [0, 2, 3, 3]
    x = torch.arange(9.0).view(3, 1, 3, 1) + 1
    packed = packing.pack(x)
    assert packed[:, 0, 0].tolist() == [2, 3, 4, 0, 0, 0, 0, 0, 0]
    packed[3:] = torch.nan  # what a kernel leaves there
    assert packing.unpack(packed, 3)[:, 0, :, 0].tolist() == [[0, 2, 3], [4, 0, 0], [0, 0, 0]]


def test_packing_ends_each_document() -> None:
    real = torch.tensor([[0, 1, 1, 1], [1, 1, 0, 0]]).bool()
    documents = torch.tensor([[0, 0, 1, 2], [0, 1, 1, 1]])
    for count in (5, 0):  # 0: not known beforehand
        packing = ragged_packing(real, documents, count=count, longest=1)
        assert packing.ends.tolist() == [0, 1, 2, 3, 4, 5]
        assert packing.longest == 1


# -- whole models -------------------------------------------------------------------------------

IDS = torch.randint(0, 97, (3, 6), generator=torch.Generator().manual_seed(3))
FLAGS: list[dict[str, Any]] = [
    {},
    {"scale_attn_weights": False},
    {"scale_attn_by_inverse_layer_idx": True},
    {"reorder_and_upcast_attn": True},
    {"reorder_and_upcast_attn": True, "scale_attn_by_inverse_layer_idx": True},
]
HEADS = torch.tensor([[1.0, 0.0, 0.5, 1.0], [1.0, 2.0, 1.0, 0.0]])
DOCUMENTS = torch.tensor([[7, 7, 2, 2, 2, 9], [0, 0, 0, 0, 0, 0], [1, 2, 3, 3, 4, 4]])


def results(
    model: GPT2LMHeadModel, mask: Tensor | None, **arguments: Any
) -> tuple[Tensor, Tensor, list[Tensor]]:
    model.zero_grad()
    out = model(IDS, attention_mask=mask, labels=IDS, use_cache=False, **arguments)
    out.loss.backward()
    return (
        at_attended(out.logits, mask).detach(),
        out.loss.detach(),
        [p.grad for p in model.parameters()],
    )


def assert_equal(actual: Any, expected: Any) -> None:
    assert_close(actual[0], expected[0], what="logits")
    assert_close(actual[1], expected[1], what="loss")
    for here, there in zip(actual[2], expected[2], strict=True):
        assert_close(here, there, what="gradient")


@pytest.mark.parametrize("padding", [None, *key_masks()])
@pytest.mark.parametrize("flags", FLAGS, ids=lambda f: "+".join(f) or "default")
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_models_equal_eager(
    standins: StandIns, padding: str | None, flags: dict[str, Any], training: bool
) -> None:
    mask = None if padding is None else key_masks()[padding].long()
    flash_model = tiny_model(attn_implementation=FLASH, **flags).train(training)
    eager_model = tiny_model(attn_implementation="eager", **flags).train(training)
    assert_equal(
        results(flash_model, mask, head_mask=HEADS), results(eager_model, mask, head_mask=HEADS)
    )
    assert len(standins.calls) == 2  # one for each layer


@pytest.mark.parametrize("padding", [None, "left", "holes"])
@pytest.mark.parametrize("checked", [True, False])
def test_documents_equal_eager_one_by_one(
    standins: StandIns, no_dense_mask: None, padding: str | None, checked: bool
) -> None:
    mask = None if padding is None else key_masks()[padding].long()
    arguments: dict[str, Any] = {"document_ids": DOCUMENTS, "check_inputs": checked}
    assert_equal(
        results(tiny_model(attn_implementation=FLASH), mask, **arguments), one_by_one(mask)
    )


def one_by_one(mask: Tensor | None) -> tuple[Tensor, Tensor, list[Tensor]]:
    """The documents of the rows of IDS, each run alone by an eager model."""
    model = tiny_model(attn_implementation="eager")
    mask = torch.ones_like(IDS) if mask is None else mask
    logits, terms = torch.zeros(3, 6, 97), []
    for row in range(3):
        for document in DOCUMENTS[row].unique():
            at = ((DOCUMENTS[row] == document) & mask[row].bool()).nonzero()[:, 0]
            if not len(at):
                continue
            alone = model(IDS[row : row + 1, at]).logits[0]
            logits[row, at] = alone.detach()
            kept = (at[1:] - at[:-1] == 1).nonzero()[:, 0]  # no term with padding in between
            terms.append(-alone.log_softmax(-1)[kept, IDS[row, at[1:][kept]]])
    loss = torch.cat(terms).mean()
    loss.backward()
    return logits[mask.bool()], loss.detach(), [p.grad for p in model.parameters()]


@pytest.mark.parametrize("padding", key_masks())
def test_cached_chunks_equal_eager(
    standins: StandIns, no_dense_mask: None, monkeypatch: pytest.MonkeyPatch, padding: str
) -> None:
    """A padded prompt, then one token, then three at once, which see what was before them."""
    mask = torch.cat([key_masks()[padding].long(), torch.ones(3, 4, dtype=torch.long)], 1)
    new = torch.randint(0, 97, (3, 4), generator=torch.Generator().manual_seed(4))
    ids = torch.cat([IDS, new], 1)
    model = tiny_model(attn_implementation=FLASH)
    with torch.no_grad():
        past, found = None, []
        for start, stop in ((0, 6), (6, 7), (7, 10)):
            out = model(ids[:, start:stop], past_key_values=past, attention_mask=mask[:, :stop])
            past = out.past_key_values
            found.append(out.logits)
        for i in range(3):
            at = mask[i].bool()
            alone = tiny_model(attn_implementation="eager")(ids[i : i + 1, at]).logits[0]
            assert_close(torch.cat(found, 1)[i, at], alone)


@pytest.mark.parametrize("encoder_mask", [None, "ragged", "with an empty row"])
@pytest.mark.parametrize("padding", [None, "left"])
def test_cross_attention_equals_eager(
    standins: StandIns, encoder_mask: str | None, padding: str | None
) -> None:
    arguments: dict[str, Any] = {
        "encoder_hidden_states": torch.randn(3, 5, 32, generator=torch.Generator().manual_seed(5))
    }
    if encoder_mask is not None:
        seen = torch.tensor([[1, 1, 0, 1, 0], [1, 1, 1, 1, 1], [0, 1, 0, 0, 0]])
        seen[2, 1] = int(encoder_mask == "ragged")
        arguments["encoder_attention_mask"] = seen
    mask = None if padding is None else key_masks()[padding].long()
    found = [
        results(tiny_model(attn_implementation=name, add_cross_attention=True), mask, **arguments)
        for name in (FLASH, "eager")
    ]
    assert_equal(*found)
    assert len(standins.calls) == 4


def test_generated_ids_equal_eager(standins: StandIns) -> None:
    mask = key_masks()["holes"].long()
    texts = [
        tiny_model(attn_implementation=name).generate(IDS, attention_mask=mask, max_new_tokens=5)
        for name in (FLASH, "eager")
    ]
    assert torch.equal(*texts)
    assert standins.calls


def test_attentions_are_computed_explicitly(standins: StandIns) -> None:
    mask = key_masks()["left"].long()
    outs = [
        tiny_model(attn_implementation=name)(IDS, attention_mask=mask, output_attentions=True)
        for name in (FLASH, "eager")
    ]
    assert_close(outs[0].logits, outs[1].logits)
    for here, there in zip(outs[0].attentions, outs[1].attentions, strict=True):
        assert torch.equal(here, there)
    assert standins.calls == []


@pytest.mark.parametrize(
    "arguments",
    [{}, {"attention_mask": key_masks()["left"]}, {"document_ids": DOCUMENTS}],
    ids=["plain", "padded", "documents"],
)
def test_forward_waits_once(monkeypatch: pytest.MonkeyPatch, arguments: dict[str, Any]) -> None:
    """The stand-ins do wait; so the adapter is cut off."""
    with standing_in(monkeypatch, "torch 2.13"):
        model = tiny_model(attn_implementation=FLASH)

        def cut_off(q: Tensor, *_: Any, **__: Any) -> Tensor:
            return q

        monkeypatch.setattr(flash, "_varlen", cut_off)
        with counted(monkeypatch) as mode:
            model(IDS, **arguments)
        assert mode.count == 1
        with counted(monkeypatch) as mode:
            model(IDS, check_inputs=False, **arguments)
        assert mode.count == int("document_ids" in arguments)  # their number has to be known


# -- dropout ------------------------------------------------------------------------------------


@pytest.mark.parametrize("padded", [False, True], ids=["even", "ragged"])
def test_dropout_keeps_the_mean_and_has_the_variance_of_theory(
    standins: StandIns, padded: bool
) -> None:
    """Var Σ_j w_j m_j v_j / (1 − p) = p / (1 − p) · Σ_j (w_j v_j)², over 8 000 rows."""
    rows, p = 8000, 0.3
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, 4, 8, generator=generator) for _ in range(3))
    real = torch.tensor([[0, 1, 1, 1]]).bool() if padded else torch.ones(1, 4).bool()
    seen = placement.padded_causal_visibility(real, 4)
    weights = ((q @ k.transpose(-1, -2)) * 0.3).masked_fill(~seen, -torch.inf).softmax(-1)
    torch.manual_seed(0)
    # stand-ins go segment by segment: one long batch of heads in place of rows
    q, k, v = (t.repeat(1, rows, 1, 1) for t in (q, k, v))
    segments = causal_segments(real, 4) if padded else None
    settings: dict[str, Any] = {"scale": 0.3, "causal": True, "dropout_p": p}
    out = get_backend(FLASH)(q, k, v, mask=segments, **settings).view(rows, 2, 4, 8)
    mean, variance = weights @ v[:, :2], p / (1 - p) * weights.square() @ v[:, :2].square()
    at = real[0]
    error = (variance[0] / rows).sqrt()[:, at]
    assert ((out.mean(0) - mean[0])[:, at].abs() <= 5 * error).all()
    # the sample variance of a sum of a few two-point variables: within a tenth
    assert relative_error(out.var(0)[:, at], variance[0][:, at]) <= 0.1


def test_models_hand_their_dropout_to_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    mask = key_masks()["left"].long()
    with standing_in(monkeypatch, "flash-attn") as standins:
        model = tiny_model(attn_implementation=FLASH, attn_pdrop=0.25)
        for training in (True, False):
            model.train(training)(IDS)
            model(IDS, attention_mask=mask)
        assert standins.dropout == [0.25] * 4 + [0.0] * 4
    for which in KERNELS[1:]:
        with standing_in(monkeypatch, which) as standins:
            model.train(False)(IDS, attention_mask=mask)
            assert standins.calls == ["varlen"] * 2
            one, other = (
                model.train()(IDS, attention_mask=mask, labels=IDS).loss for _ in range(2)
            )
            assert standins.calls == ["varlen"] * 2 + ["sdpa"] * 4
            assert one != other
            one.backward()
            assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("which", KERNELS[1:])
def test_dropout_to_padded_encoder_states_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    arguments: dict[str, Any] = {
        "encoder_hidden_states": torch.randn(3, 5, 32),
        "encoder_attention_mask": torch.tensor([[1, 1, 0, 1, 0], [1] * 5, [0, 1, 0, 0, 0]]),
    }
    with standing_in(monkeypatch, which):
        model = tiny_model(attn_implementation=FLASH, add_cross_attention=True, attn_pdrop=0.2)
        with pytest.raises(BackendError, match=r"attn_pdrop = 0\.2.*encoder.*install.*'sdpa'"):
            model.train()(IDS, **arguments)
        model(IDS, encoder_hidden_states=arguments["encoder_hidden_states"])
        model.eval()(IDS, **arguments)
    with standing_in(monkeypatch, "flash-attn"):
        model.train()(IDS, **arguments)


# -- what it refuses ----------------------------------------------------------------------------


def test_it_is_refused_when_built_where_it_is_not_installed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: False)
    monkeypatch.setattr(flash, "_flash_attn_package", lambda: None)
    monkeypatch.setattr(flash, "_kernels", None)
    expected = r"flash_attention_2'; it may be eager, sdpa; .*flash-attn package.*this is torch"
    for cls in (GPT2Model, GPT2LMHeadModel):
        with pytest.raises(BackendError, match=expected):
            cls(tiny_config(attn_implementation=FLASH))
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: True)
    GPT2Model(tiny_config(attn_implementation=FLASH))
    with pytest.raises(BackendError, match=r"it may be eager, sdpa, flash_attention_2; did you"):
        get_backend("flash_attention")


def test_an_old_package_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    for version, counts in (("2.0.9", False), ("2.1.0", True), ("2.8.3.post1", True)):
        package = SimpleNamespace(__version__=version)
        monkeypatch.setattr(flash.importlib, "import_module", lambda name, p=package: p)
        assert (flash._flash_attn_package() is package) == counts


def test_a_broken_package_is_no_silent_fallback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: str) -> None:
        raise ImportError("undefined symbol: _ZN3c10")

    monkeypatch.setattr(flash.importlib, "import_module", broken)
    monkeypatch.setattr(flash, "_kernels", None)
    with pytest.raises(BackendError, match=r"flash-attn is installed.*undefined symbol.*'sdpa'"):
        tiny_model(attn_implementation=FLASH)
    assert tiny_model(attn_implementation="sdpa")(IDS).logits.isfinite().all()


@pytest.mark.parametrize(
    ("q", "parts"),
    [
        ({"device": "cpu", "dtype": torch.float16}, ["float16 on cpu"]),
        ({"device": "cuda", "dtype": torch.float32}, ["float32 on cuda"]),
        ({"head_dim": 12}, ["multiples of 8 up to 256", "not 12"]),
        ({"head_dim": 264}, ["multiples of 8 up to 256", "not 264"]),
        ({"capability": (7, 5)}, ["8.0", "7.5"]),
        ({}, []),
    ],
    ids=["device", "dtype", "head size", "large heads", "old GPU", "good"],
)
def test_what_the_kernels_do_not_take_is_refused_at_the_first_forward(
    monkeypatch: pytest.MonkeyPatch, q: dict[str, Any], parts: list[str]
) -> None:
    like = SimpleNamespace(
        device=torch.device(q.get("device", "cuda")),
        dtype=q.get("dtype", torch.bfloat16),
        shape=(1, 1, 1, q.get("head_dim", 64)),
        is_cuda=True,
    )
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: q.get("capability", (8, 0)))
    monkeypatch.setattr(torch.version, "hip", None)
    if not parts:
        flash._require_usable(like)  # type: ignore[arg-type]
        return
    with pytest.raises(BackendError) as caught:
        flash._require_usable(like)  # type: ignore[arg-type]
    for part in (*parts, "use attn_implementation='sdpa' or 'eager'"):
        assert part in str(caught.value)


def test_a_model_on_the_cpu_is_refused_at_the_first_forward(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: True)
    model = tiny_model(attn_implementation=FLASH)
    with pytest.raises(BackendError, match=r"float32 on cpu; move the model .*'sdpa' or 'eager'"):
        model(IDS)


def test_upcasting_leaves_half_precision_to_the_kernel(
    standins: StandIns, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It keeps scores and softmax in float32 as it is, and takes no float32."""
    with monkeypatch.context() as patch:  # undone before what the stand-ins patch is undone
        patch.setattr(flash, "_DTYPES", (torch.float16, torch.bfloat16))
        model = tiny_model(attn_implementation=FLASH, reorder_and_upcast_attn=True).bfloat16()
        assert model(IDS, attention_mask=key_masks()["left"]).logits.dtype == torch.bfloat16
    assert len(standins.calls) == 2


def test_a_dense_mask_is_refused_by_name(standins: StandIns) -> None:
    model = tiny_model(attn_implementation=FLASH)
    for mask in (torch.ones(1, 1, 6, 6).bool(), torch.zeros(3, 4, 6, 6)):
        with pytest.raises(BackendError, match=r"no dense mask.*4-D.*'sdpa' or 'eager'"):
            model(IDS, attention_mask=mask)
    assert standins.calls == []


def test_the_installed_varlen_kernel_takes_what_it_is_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On the meta device torch runs its own kernel's shape function, and nothing else."""
    monkeypatch.setattr(flash, "_DEVICE", "meta")
    monkeypatch.setattr(flash, "_flash_attn_package", lambda: None)
    monkeypatch.setattr(flash, "_kernels", None)
    q, k = (torch.empty(3, 2, n, 8, dtype=torch.bfloat16, device="meta") for n in (4, 6))
    key_mask = torch.ones(3, 6, dtype=torch.bool, device="meta")
    for segments, causal in (
        (None, True),
        (causal_segments(key_mask, 4), True),
        (encoder_segments(key_mask, 4), False),
    ):
        out = flash.attend_flash(q, k, k, mask=segments, scale=0.3, causal=causal, dropout_p=0.0)
        assert out.shape == q.shape
        assert out.dtype == q.dtype


@pytest.mark.parametrize("padded", [False, True])
def test_it_compiles_without_graph_breaks(monkeypatch: pytest.MonkeyPatch, padded: bool) -> None:
    """With torch's own kernel, on the meta device: nothing in the adapter waits for a value."""
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: True)
    monkeypatch.setattr(flash, "_DEVICE", "meta")
    monkeypatch.setattr(flash, "_flash_attn_package", lambda: None)
    monkeypatch.setattr(flash, "_kernels", None)
    model = tiny_model(attn_implementation=FLASH).to("meta", torch.bfloat16)
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    mask = key_masks()["left"].to("meta") if padded else None
    with torch.no_grad():
        assert compiled(IDS.to("meta"), attention_mask=mask).logits.shape == (3, 6, 97)
    torch.compiler.reset()


# -- the real kernels ---------------------------------------------------------------------------

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
# Largest error relative to the largest entry, against eager float32 of the same rounded weights.
BOUNDS = {torch.float16: 5e-3, torch.bfloat16: 4e-2}


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
@pytest.mark.parametrize("padding", [None, *key_masks(), "documents"])
@pytest.mark.parametrize("flags", FLAGS, ids=lambda f: "+".join(f) or "default")
def test_real_kernels_equal_eager(
    dtype: torch.dtype, padding: str | None, flags: dict[str, Any]
) -> None:
    mask = None if padding in (None, "documents") else key_masks()[str(padding)].long().cuda()
    arguments: dict[str, Any] = {"attention_mask": mask, "head_mask": HEADS.cuda()}
    if padding == "documents":
        arguments["document_ids"] = DOCUMENTS.cuda()
    found = []
    for backend, kind in (("eager", torch.float32), (FLASH, dtype), ("sdpa", dtype)):
        model = tiny_model(attn_implementation=backend, **flags).to("cuda", dtype).to(kind)
        out = model(IDS.cuda(), labels=IDS.cuda(), use_cache=False, **arguments)
        out.loss.backward()
        found.append(
            [at_attended(out.logits, mask), out.loss, *(p.grad for p in model.parameters())]
        )
    for other in found[1:]:
        errors = [relative_error(a, b) for a, b in zip(other, found[0], strict=True)]
        print(f"{dtype} {padding} {flags}: {errors[0]:.1e}, gradients {max(errors[2:]):.1e}")
        assert errors[0] <= BOUNDS[dtype]
        assert max(errors[1:]) <= 2 * BOUNDS[dtype]


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
@pytest.mark.parametrize("padding", key_masks())
def test_real_kernels_continue_a_cache(dtype: torch.dtype, padding: str) -> None:
    """One token, then three at once: causality is aligned to the end of the keys."""
    mask = torch.cat([key_masks()[padding].long(), torch.ones(3, 4, dtype=torch.long)], 1).cuda()
    ids = torch.cat([IDS, IDS[:, :4]], 1).cuda()
    found = []
    for backend, kind in (("eager", torch.float32), (FLASH, dtype)):
        model = tiny_model(attn_implementation=backend).to("cuda", dtype).to(kind)
        past, chunks = None, []
        with torch.no_grad():
            for start, stop in ((0, 6), (6, 7), (7, 10)):
                out = model(ids[:, start:stop], past_key_values=past, attention_mask=mask[:, :stop])
                past = out.past_key_values
                chunks.append(out.logits)
        found.append(torch.cat(chunks, 1)[mask.bool()])
    assert relative_error(found[1], found[0]) <= BOUNDS[dtype]


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
@pytest.mark.parametrize("padded", [False, True], ids=["even", "ragged"])
def test_real_kernels_drop_out_with_the_right_mean(dtype: torch.dtype, padded: bool) -> None:
    rows = 4000
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, 4, 8, generator=generator).to("cuda", dtype) for _ in range(3))
    real = torch.tensor([[0, 1, 1, 1]] if padded else [[1, 1, 1, 1]]).bool().cuda()
    dense = placement.padded_causal_visibility(real, 4)
    expected = attend_eager(
        q.float(), k.float(), v.float(), mask=dense, scale=0.3, causal=False, dropout_p=0.0
    )[0]
    q, k, v = (t.expand(rows, -1, -1, -1).contiguous() for t in (q, k, v))
    segments = causal_segments(real.expand(rows, -1), 4) if padded else None
    draws = get_backend(FLASH)(q, k, v, mask=segments, scale=0.3, causal=True, dropout_p=0.3)
    draws = draws.float()[:, :, real[0]]
    error = draws.std(0) / rows**0.5
    mean = draws.mean(0)
    assert ((mean - expected[:, real[0]]).abs() <= 5 * error + BOUNDS[dtype]).all()
    assert (draws.std(0) > 0.05).all()
