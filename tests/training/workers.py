"""What the processes of the distributed tests do, and how they are started.

Each process runs one of the functions here, with gloo on the CPU; rank 0 leaves what it has
computed in a file, which the tests compare with one process's results.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._dynamo.utils import counters
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.nn.parallel import DistributedDataParallel
from torch.optim import AdamW, Optimizer

from gpt2 import GPT2ForSequenceClassification, GPT2LMHeadModel, GPT2Model, GPT2PreTrainedModel
from gpt2.modeling import padded_head
from gpt2.training.distributed_checkpoint import load_checkpoint, save_checkpoint
from gpt2.training.lora import LoraConfig, add_lora
from gpt2.training.optim import parameter_groups
from gpt2.training.parallel import parallelize
from gpt2.training.sharded import (
    export_pretrained,
    gathered_state,
    initialise_sharded,
    load_sharded,
    local,
    whole,
)
from gpt2.training.tensor_parallel import fused_orders
from tests.helpers import tiny_config, tiny_model
from tests.processes import forkserver

Mode = tuple[tuple[int, ...], tuple[str, ...]]

TP2: Mode = ((2,), ("tp",))
DP2: Mode = ((2,), ("dp",))
BOTH: Mode = ((2, 2), ("dp", "tp"))
TP4: Mode = ((4,), ("tp",))
DP4: Mode = ((4,), ("dp",))

WORDS = {"vocab_size": 97, "bos_token_id": 1, "eos_token_id": 1}
SEVERAL: dict[str, dict[str, Any]] = {
    f"{'tied' if tied else 'untied'} {size}": {
        **WORDS, "vocab_size": size, "tie_word_embeddings": tied,
    }
    for tied in (True, False)
    for size in (97, 98)
}  # fmt: skip
STEPS = 4  # of training: two, a save, and two more


def start(ranks: int, work: Callable[..., None], folder: Path, *arguments: Any) -> list[int | None]:
    """Run ``work`` in as many processes; their exit codes, None for one that hung."""
    context = forkserver()
    store = folder / f"store-{time.monotonic_ns()}"
    processes = [
        context.Process(target=_begin, args=(rank, ranks, str(store), work, folder, *arguments))
        for rank in range(ranks)
    ]
    for process in processes:
        process.start()
    until = time.monotonic() + 240
    for process in processes:
        process.join(max(0.0, until - time.monotonic()))
    codes = [process.exitcode for process in processes]
    for process in processes:
        if process.is_alive():
            process.kill()
            process.join()
    return codes


def _begin(
    rank: int, ranks: int, store: str, work: Callable[..., None], folder: Path, *arguments: Any
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=ranks,
        timeout=timedelta(seconds=120),
    )  # fmt: skip
    work(folder, *arguments)
    dist.destroy_process_group()


def rows(step: int, size: int = 97) -> Tensor:
    """The batch (4, 16) of one step."""
    return torch.randint(0, size, (4, 16), generator=torch.Generator().manual_seed(step))


def optimizer_of(model: torch.nn.Module) -> Optimizer:
    # With the usual eps, Adam makes steps of the rounding errors of gradients that are zero in
    # truth, such as those of the keys' biases.
    return AdamW(parameter_groups(model), lr=1e-2, eps=1e-3)


def train(model: GPT2PreTrainedModel, optimizer: Optimizer, batch: Tensor) -> Tensor:
    model.train()
    loss = model(batch, labels=batch, return_logits=False).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
    optimizer.step()
    optimizer.zero_grad()
    return loss.detach()


def mesh_of(mode: Mode) -> DeviceMesh:
    return init_device_mesh("cpu", mode[0], mesh_dim_names=mode[1])


def cut(model: Any, mesh: DeviceMesh, **how: Any) -> Any:
    names = mesh.mesh_dim_names or ()
    how = {"tensor_parallel": "tp" in names, "fully_shard": "dp" in names, **how}
    return parallelize(model, mesh, **how)


def own_rows(batch: Tensor, mesh: DeviceMesh) -> Tensor:
    """The rows of this rank: all in a "tp" group get the same."""
    if "dp" not in (mesh.mesh_dim_names or ()):
        return batch
    return batch.chunk(mesh["dp"].size())[mesh["dp"].get_local_rank()]


def mean(x: Tensor) -> Tensor:
    x = x.detach().clone()
    dist.all_reduce(x)
    return x / dist.get_world_size()


def gradients(model: torch.nn.Module) -> dict[str, Tensor]:
    orders = fused_orders(model)
    found = {}
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        found[name] = whole(parameter.grad, orders.get(name))
    return found


def leave(path: Path, result: Any) -> None:
    if dist.get_rank() == 0:
        torch.save(result, path)
    dist.barrier()


#: what may be added to the cross-entropy
TERMS = {"label_smoothing": 0.2, "z_loss": 1e-2}


def loss_and_gradients(
    model: Any, batch: Tensor, mesh: DeviceMesh, **arguments: Any
) -> dict[str, Any]:
    out = model.train()(batch, labels=batch, **arguments)
    out.loss.backward()
    result = {"loss": mean(out.loss), "gradients": gradients(model)}
    model.zero_grad()
    return result


# ---------------------------------------------------------------- equality


def compare_modes(folder: Path, modes: list[Mode], name: str) -> None:
    """Loss and gradients of all modes, kinds of model, and ways to have the loss."""
    results = {}
    for mode in modes:
        mesh = mesh_of(mode)
        for kind, settings in SEVERAL.items():
            # Another seed per rank: rank 0's weights must win.
            model = cut(tiny_model(seed=dist.get_rank(), **settings), mesh)
            batch = own_rows(rows(0, settings["vocab_size"]), mesh)
            for keep in (True, False):
                where = f"{'×'.join(mode[1])} {mode[0]} {kind} return_logits={keep}"
                results[where] = loss_and_gradients(model, batch, mesh, return_logits=keep)
                results[where]["kind"] = kind
        again = cut(tiny_model(**WORDS), mesh, activation_checkpointing=True)
        assert again.is_gradient_checkpointing
        where = f"{'×'.join(mode[1])} {mode[0]} checkpointed"
        results[where] = loss_and_gradients(again, own_rows(rows(0), mesh), mesh)
        results[where]["kind"] = "tied 97"
        where = f"{'×'.join(mode[1])} {mode[0]} smoothed"
        results[where] = loss_and_gradients(again, own_rows(rows(0), mesh), mesh, **TERMS)
        results[where] |= {"kind": "tied 97", "arguments": TERMS}
    leave(folder / name, results)


def compare_compiled(folder: Path, backend: str = "inductor") -> None:
    """Blocks compiled by torch's compiler, or traced with their gradients and run as they are."""
    compile_ = torch.nn.Module.compile
    torch.nn.Module.compile = lambda block: compile_(block, backend=backend)  # type: ignore
    results = {}
    for mode in (DP2, TP2):
        mesh = mesh_of(mode)
        model = cut(tiny_model(**WORDS), mesh, compile=True, activation_checkpointing=True)
        counters.clear()
        results[str(mode)] = loss_and_gradients(model, own_rows(rows(0), mesh), mesh)
        assert counters["stats"]["unique_graphs"] > 0
    torch.nn.Module.compile = compile_  # type: ignore[method-assign]
    leave(folder / f"compiled {backend}", results)


# ---------------------------------------------------------------- two processes


def everything_at_two(folder: Path, pretrained: Path) -> None:
    """All that the tests look at with two processes: one start for all of them."""
    compare_modes(folder, [DP2, TP2], "modes2")
    for mode, name in ((DP2, "dp"), (TP2, "tp")):
        train_and_save(folder, mode, name)
    leave(
        folder / "more",
        {
            "ragged": ragged(),
            "half": half_precision(),
            "padded": padded(),
            "dropout": dropout(),
            "outputs": outputs(),
            "loaded": loaded(pretrained),
            "memory": memory(),
            "refused": refusals(folder, pretrained),
        },
    )
    compare_compiled(folder, "aot_eager")


def train_and_save(folder: Path, mode: Mode, name: str) -> None:
    """Two steps, a checkpoint, two more steps and an export."""
    mesh = mesh_of(mode)
    model = cut(tiny_model(**WORDS), mesh)
    optimizer = optimizer_of(model)
    for step in range(STEPS):
        if step == 2:
            save_checkpoint(folder / f"{name}-checkpoint", model, optimizer, extra={"step": step})
        train(model, optimizer, own_rows(rows(step), mesh))
    export_pretrained(model, folder / f"{name}-export")


def resume(folder: Path, name: str, mode: Mode, to: str) -> None:
    """Go on from a checkpoint in another mode, from the meta device, and export."""
    mesh = mesh_of(mode)
    model = cut(GPT2LMHeadModel.from_config(tiny_config(**WORDS), device="meta"), mesh)
    initialise_sharded(model)
    optimizer = AdamW(parameter_groups(model), lr=123.0)  # the checkpoint's settings win
    extra = load_checkpoint(folder / f"{name}-checkpoint", model, optimizer)
    for step in range(extra["step"], STEPS):
        train(model, optimizer, own_rows(rows(step), mesh))
    export_pretrained(model, folder / to)


def ragged() -> dict[str, Any]:
    """Ranks with unequal numbers of targets, added up by num_items_in_batch."""
    mesh = mesh_of(DP2)
    model = cut(tiny_model(**WORDS), mesh)
    batch, mask = rows(0), torch.ones(4, 16, dtype=torch.int64)
    mask[0, 5:] = 0
    items = int((mask[:, 1:]).sum()) / mesh.size()
    return loss_and_gradients(
        model, own_rows(batch, mesh), mesh, attention_mask=own_rows(mask, mesh),
        num_items_in_batch=torch.tensor(items),
    )  # fmt: skip


def half_precision() -> dict[str, Any]:
    """FSDP2 with bfloat16 computation: float32 parameters and gradients, float32 loss."""
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    mesh = mesh_of(DP2)
    model = cut(tiny_model(**WORDS), mesh, fully_shard=policy)
    batch = own_rows(rows(0), mesh)
    seen: list[torch.dtype] = []
    hook = model.transformer.h[1].mlp.c_fc.register_forward_hook(
        lambda _module, _inputs, output: seen.append(output.dtype)
    )
    result = loss_and_gradients(model, batch, mesh)
    hook.remove()
    return {**result, "computed": seen[0], "kept": model.transformer.wte.weight.dtype}


def padded() -> dict[str, Any]:
    """FSDP2 with the head's products over a padded vocabulary."""
    padded_head._FEWEST_ROWS = 2
    mesh, found = mesh_of(DP2), {}
    for kind, settings in SEVERAL.items():
        model = cut(tiny_model(**settings), mesh)
        model.pad_vocabulary()
        batch = own_rows(rows(0, settings["vocab_size"]), mesh)
        for keep in (True, False):
            where = f"padded {kind} return_logits={keep}"
            found[where] = loss_and_gradients(model, batch, mesh, return_logits=keep)
            found[where]["kind"] = kind
    return found


def dropout() -> list[float]:
    """Losses of the ranks of one group, whose activations dropout must not part."""
    torch.manual_seed(5)
    model = cut(tiny_model(**WORDS, resid_pdrop=0.3, embd_pdrop=0.3), mesh_of(TP2)).train()
    loss = model(rows(0), labels=rows(0)).loss.item()
    losses: list[float] = [0.0] * dist.get_world_size()
    dist.all_gather_object(losses, loss)
    return losses


def outputs() -> dict[str, Any]:
    """What other calls give under tensor parallelism."""
    mesh = mesh_of(TP2)
    model = cut(tiny_model(**WORDS), mesh).eval()
    with torch.no_grad():
        logits = model(rows(0)).logits
        listed = model(rows(0), return_dict=False)[0]
        new = model.generate(rows(0)[:, :5], max_new_tokens=6, do_sample=False)
        bare = cut(tiny_model(GPT2Model, **WORDS), mesh)(rows(0)).last_hidden_state
        labels = cut(tiny_model(GPT2ForSequenceClassification, **WORDS), mesh)(rows(0)).logits
        crossed = tiny_model(GPT2Model, **WORDS, add_cross_attention=True)
        states = cut(crossed, mesh)(rows(0), encoder_hidden_states=encoded()).last_hidden_state
    return {
        "logits": logits, "tuple": listed, "generated": new, "bare": bare, "labels": labels,
        "crossed": states, "tied": model.lm_head.weight is model.transformer.wte.weight,
        "decayed": [len(group["params"]) for group in parameter_groups(model)],
    }  # fmt: skip


def encoded() -> Tensor:
    return torch.randn(4, 7, 32, generator=torch.Generator().manual_seed(9))


def loaded(pretrained: Path) -> dict[str, Any]:
    """Meta start and sharded load, in both modes, of the same head and of another."""
    found: dict[str, Any] = {}
    for mode, name in ((DP2, "dp"), (TP2, "tp")):
        mesh = mesh_of(mode)
        model = cut(GPT2LMHeadModel.from_config(tiny_config(**WORDS), device="meta"), mesh)
        report = load_sharded(model, pretrained)
        assert report.model_class == "GPT2LMHeadModel"
        found[name] = dict(gathered_state(model))
        torch.manual_seed(dist.get_rank())
        other = GPT2ForSequenceClassification.from_config(tiny_config(**WORDS), device="meta")
        cut(other, mesh)
        load_sharded(other, pretrained)
        found[f"{name} score"] = dict(gathered_state(other))["score.weight"]
    return found


def memory() -> dict[str, int]:
    """Bytes of this rank's parameters, gradients and AdamW states under FSDP2, and of the whole."""
    mesh = mesh_of(DP2)
    model = cut(tiny_model(vocab_size=1001, bos_token_id=1, eos_token_id=1), mesh)
    optimizer = optimizer_of(model)
    batch = own_rows(rows(0), mesh)
    model.train()(batch, labels=batch).loss.backward()
    optimizer.step()

    def size(tensors: Any) -> int:
        return sum(local(t).nbytes for t in tensors)

    states = [t for s in optimizer.state.values() for t in s.values() if t.dim()]
    return {
        "whole": 4 * model.num_parameters(),
        "parameters": size(model.parameters()),
        "gradients": size(p.grad for p in model.parameters()),
        "states": size(states),
    }


def refusals(folder: Path, pretrained: Path) -> dict[str, str]:
    """The messages of what is refused, on every rank alike."""
    dp, tp = mesh_of(DP2), mesh_of(TP2)
    parallel = cut(tiny_model(**WORDS), tp)
    trained = optimizer_of(parallel)
    adapted = tiny_model(**WORDS)
    add_lora(adapted)
    adapted_table = tiny_model(tie_word_embeddings=False, **WORDS)
    add_lora(adapted_table, LoraConfig(target_modules=["wte"]))
    wide = tiny_model(**WORDS)
    wide.pad_vocabulary()
    seeded = tiny_model(**WORDS, resid_pdrop=0.1)
    one = init_device_mesh("cpu", (2, 1), mesh_dim_names=("dp", "tp"))
    cases: dict[str, Callable[[], Any]] = {
        "heads": lambda: cut(tiny_model(n_head=1, **WORDS), tp),
        "inner": lambda: cut(tiny_model(n_inner=63, **WORDS), tp),
        "names": lambda: cut(
            tiny_model(**WORDS), init_device_mesh("cpu", (2,), mesh_dim_names=("data",))
        ),
        "order": lambda: cut(
            tiny_model(**WORDS), init_device_mesh("cpu", (2, 1), mesh_dim_names=("tp", "dp"))
        ),
        "size": lambda: cut(tiny_model(**WORDS), one["tp"]),
        "no tp": lambda: cut(tiny_model(**WORDS), dp, tensor_parallel=True),
        "idle": lambda: cut(tiny_model(**WORDS), dp, fully_shard=False),
        "twice": lambda: cut(parallel, tp),
        "lora": lambda: cut(adapted, tp),
        "lora table": lambda: cut(adapted_table, tp),
        "no policy": lambda: cut(tiny_model(**WORDS), dp, fully_shard="yes"),
        "no flag": lambda: cut(tiny_model(**WORDS), tp, compile="yes"),
        "adapters behind": lambda: add_lora(parallel),
        "dp twice": lambda: cut(cut(tiny_model(**WORDS), dp), dp),
        "wrapped": lambda: cut(DistributedDataParallel(tiny_model(**WORDS)), dp),
        "no mesh": lambda: parallelize(tiny_model(**WORDS), "dp"),  # type: ignore[arg-type]
        "padded": lambda: cut(wide, tp)(rows(0)),
        "head_mask": lambda: parallel(rows(0), head_mask=torch.ones(4)),
        "attentions": lambda: parallel(rows(0), output_attentions=True),
        "save": lambda: parallel.save_pretrained(folder / "never"),
        "not meta": lambda: load_sharded(parallel, pretrained),
        "extra": lambda: save_checkpoint(folder / "never", parallel, extra={"x": {1, 2}}),
        "other config": lambda: load_checkpoint(
            folder / "tp-checkpoint", cut(tiny_model(**{**WORDS, "n_layer": 3}), tp)
        ),
        "other groups": lambda: load_checkpoint(
            folder / "tp-checkpoint", parallel, AdamW(parallel.parameters())
        ),
        "foreign optimizer": lambda: save_checkpoint(
            folder / "never", cut(tiny_model(**WORDS), tp), trained
        ),
        "nothing there": lambda: load_checkpoint(folder / "none", parallel),
        "one rank": lambda: load_checkpoint(
            folder / ("dp-checkpoint" if dist.get_rank() else "none"), parallel
        ),
    }
    torch.manual_seed(dist.get_rank())
    cases["seeds"] = lambda: cut(seeded, tp)
    messages = {}
    for name, case in cases.items():
        try:
            case()
        except Exception as error:
            messages[name] = f"{type(error).__name__}: {error}"
        else:
            messages[name] = "nothing was raised"
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, messages)
    messages["rank 1: one rank"] = everyone[1]["one rank"]
    return messages


# ---------------------------------------------------------------- four processes


def everything_at_four(folder: Path) -> None:
    """The modes of four processes; and two-process checkpoints, gone on with."""
    compare_modes(folder, [BOTH], "modes4")
    for name in ("dp", "tp"):
        resume(folder, name, BOTH, f"{name}-resumed-at-4")
    train_and_save(folder, BOTH, "both")


def four_along_one(folder: Path) -> None:
    compare_modes(folder, [DP4, TP4], "modes4 long")
    for mode, name in ((DP4, "dp4"), (TP4, "tp4")):
        resume(folder, "both", mode, f"both-resumed-in-{name}")


# ---------------------------------------------------------------- a kill


def killed_while_saving(folder: Path, victim: int) -> None:
    """Save, train on, and lose a rank in the middle of the next save, its data half written."""
    mesh = mesh_of(DP2)
    model = cut(tiny_model(**WORDS), mesh)
    optimizer = optimizer_of(model)
    train(model, optimizer, own_rows(rows(0), mesh))
    save_checkpoint(folder / "kept", model, optimizer, extra={"step": 1})
    leave(folder / "kept.pt", dict(gathered_state(model)))
    train(model, optimizer, own_rows(rows(1), mesh))
    if dist.get_rank() == victim:
        os.fsync = lambda _file: os.kill(os.getpid(), signal.SIGKILL)
    save_checkpoint(folder / "kept", model, optimizer, extra={"step": 2})
