"""Train GPT-2 on the stories with several processes: FSDP2, tensor parallelism, or both.

    torchrun --nproc-per-node 2 examples/train_distributed.py --output runs/two
    torchrun --nproc-per-node 4 examples/train_distributed.py --output runs/grid --tp 2

gloo on the CPU, nccl where there are GPUs. Of N processes --tp share each layer, and the groups
of --tp share the batch. The model starts on the meta device, and each process reads its part of
--model; --fresh draws new weights. The same command goes on from the last checkpoint in --output,
with the losses that it would have had, also with another number of processes or another --tp.
At the end --output has model/, one Hugging Face directory, and losses.jsonl.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from gpt2 import GPT2LMHeadModel, GPT2Tokenizer

EMBEDDED = Path(__file__).resolve().parent / "stories-gpt2"
# The losses follow from these, so that a run must keep to them; --steps may grow.
SETTINGS = ("model", "fresh", "bf16", "batch_size", "width", "stories", "lr", "seed")


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--output", type=Path, required=True, help="directory that all processes see")
    add("--model", default=str(EMBEDDED), help="hub name or directory (default: the stories)")
    add("--fresh", action="store_true", help="new weights, in the shape of --model")
    add("--tp", type=int, default=1, help="processes that share each layer (default: 1)")
    add("--bf16", action="store_true", help="compute in bfloat16; weights stay float32")
    add("--checkpointing", action="store_true", help="compute activations twice, keep few")
    add("--compile", action="store_true", help="compile each block")
    add("--steps", type=int, default=200, help="optimizer steps (default: 200)")
    add("--batch-size", type=int, default=16, help="rows per step, of all (default: 16)")
    add("--width", type=int, default=128, help="tokens per row (default: 128)")
    add("--stories", type=int, default=2000, help="how many there are to learn (default: 2000)")
    add("--lr", type=float, default=1e-3, help="learning rate at its highest (default: 0.001)")
    add("--save-every", type=int, default=50, help="steps (default: 50)")
    add("--seed", type=int, default=1, help="of the stories, fresh weights and dropout")
    options = parser.parse_args()
    if "RANK" not in os.environ:
        parser.error("start it with torchrun, such as: torchrun --nproc-per-node 2 " + sys.argv[0])
    return options


def main() -> int:
    options = parse_options()
    ranks = int(os.environ["WORLD_SIZE"])
    if options.tp < 1 or ranks % options.tp:
        sys.exit(f"--tp {options.tp} does not divide the {ranks} processes")
    groups = ranks // options.tp
    if options.batch_size % groups:
        sys.exit(f"--batch-size {options.batch_size} does not divide by {groups}, which share it")
    import torch
    import torch.distributed as dist

    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        run(options, device)  # what it made is gone before the processes part
        dist.barrier()  # nobody leaves while another still works: gloo's threads would not survive
    finally:
        dist.destroy_process_group()
    return 0


def run(options: argparse.Namespace, device: torch.device) -> None:
    """Train, from the last checkpoint if there is one, and export."""
    import torch
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy

    import gpt2
    from gpt2.training.distributed_checkpoint import load_checkpoint, save_checkpoint
    from gpt2.training.optim import cosine_with_warmup, parameter_groups
    from gpt2.training.parallel import parallelize
    from gpt2.training.sharded import export_pretrained, initialise_sharded, load_sharded

    ranks, first = dist.get_world_size(), dist.get_rank() == 0
    groups = ranks // options.tp
    mesh = init_device_mesh(device.type, (groups, options.tp), mesh_dim_names=("dp", "tp"))
    group = mesh["dp"].get_local_rank()

    torch.manual_seed(options.seed)
    tokenizer = gpt2.GPT2Tokenizer.from_pretrained(options.model)
    config = gpt2.GPT2Config.from_pretrained(options.model)
    half = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    model = parallelize(
        gpt2.GPT2LMHeadModel.from_config(config, device="meta"),
        mesh,
        tensor_parallel=options.tp > 1,
        fully_shard=half if options.bf16 else True,
        activation_checkpointing=options.checkpointing,
        compile=options.compile,
    )
    checkpoint = options.output / "checkpoint"
    if options.fresh or checkpoint.exists():
        initialise_sharded(model, device=device)
    else:
        load_sharded(model, options.model, device=device)
    optimizer = torch.optim.AdamW(parameter_groups(model), lr=options.lr, betas=(0.9, 0.95))
    schedule = cosine_with_warmup(
        optimizer, warmup_steps=options.steps // 20, total_steps=options.steps
    )
    losses: list[float] = []
    settings = {name: str(getattr(options, name)) for name in SETTINGS}
    if checkpoint.exists():
        state = load_checkpoint(checkpoint, model, optimizer)
        if state["settings"] != settings:
            changed = [name for name in SETTINGS if state["settings"].get(name) != settings[name]]
            sys.exit(
                f"{checkpoint} was made with other settings ({', '.join(changed)}); give those, or "
                "another --output"
            )
        schedule.load_state_dict(state["schedule"])
        losses = state["losses"]

    stream = token_stream(tokenizer, options.stories, options.seed)
    if first:
        print(
            f"gpt2 {gpt2.__version__}, torch {torch.__version__}, {ranks} processes on "
            f"{device.type} ({groups} dp × {options.tp} tp), "
            f"{'bfloat16' if options.bf16 else 'float32'}; {model.num_parameters():,} parameters, "
            f"{bytes_of(model):,} bytes of them here; steps {len(losses) + 1} to {options.steps}",
            flush=True,
        )
    began, begun = time.perf_counter(), len(losses)
    for step in range(begun, options.steps):
        # The dropout of a step follows from its number, so that a run can be taken up anywhere.
        torch.manual_seed(options.seed + 1000 * step + group)
        rows = rows_of(stream, step, options.batch_size, options.width)
        loss = train_step(model, optimizer, rows.chunk(groups)[group].to(device))
        schedule.step()
        losses.append(loss)
        done = step + 1
        if first and (done % 10 == 0 or done == options.steps):
            seconds = time.perf_counter() - began
            speed = (done - begun) * options.batch_size * options.width / seconds
            left = round(seconds / (done - begun) * (options.steps - done))
            print(
                f"step {done}/{options.steps}  loss {losses[-1]:.4f}  {speed:,.0f} tokens/s  "
                f"{left // 60}:{left % 60:02d} left",
                flush=True,
            )
        if done % options.save_every == 0 or done == options.steps:
            extra = {"schedule": schedule.state_dict(), "losses": losses, "settings": settings}
            save_checkpoint(checkpoint, model, optimizer, extra=extra)
    export_pretrained(model, options.output / "model", tokenizer=tokenizer)
    if first:
        lines = [json.dumps({"step": n, "loss": x}) + "\n" for n, x in enumerate(losses, start=1)]
        (options.output / "losses.jsonl").write_text("".join(lines))
        print(f"the model is in {options.output / 'model'}")


def train_step(
    model: GPT2LMHeadModel, optimizer: torch.optim.Optimizer, rows: torch.Tensor
) -> float:
    """One optimizer step on this process's rows; returns the mean loss of all."""
    import torch
    import torch.distributed as dist

    model.train()
    loss = model(rows, labels=rows, return_logits=False).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    mean = loss.detach()
    dist.all_reduce(mean)
    return (mean / dist.get_world_size()).item()


def token_stream(tokenizer: GPT2Tokenizer, count: int, seed: int) -> torch.Tensor:
    """The stories, one after another, as one row of ids."""
    import torch
    from stories import training_stories

    end = tokenizer.eos_token_id
    ids = [tokenizer(story.text)["input_ids"] for story in training_stories(count, seed=seed)]
    return torch.tensor([token for story in ids for token in (end, *story)])


def rows_of(stream: torch.Tensor, step: int, count: int, width: int) -> torch.Tensor:
    """The rows (count, width) of one step, whatever the number of processes."""
    import torch

    places = torch.arange(step * count, (step + 1) * count) % (len(stream) // width)
    return stream[: len(stream) // width * width].view(-1, width)[places]


def bytes_of(model: torch.nn.Module) -> int:
    """Bytes of this process's part of the parameters."""
    from gpt2.training.sharded import local

    return sum(local(parameter).nbytes for parameter in model.parameters())


if __name__ == "__main__":
    code = main()
    # As multiprocessing ends its children: Python's own end may come while gloo's threads still
    # give back what they hold of it, which aborts the process.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
