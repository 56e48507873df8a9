import json, pytest, time
from .conftest import Runner


def losses(folder):
    return [e["loss"] for e in map(json.loads, (folder / "events.jsonl").read_text().splitlines()) if e["event"] == "step"]


LORA = "[plugins.lora]\nrank = 4\n"


def test_x(train):
    base = None
    for fmt in (None, "nf4-bnb", "fp4-bnb", "int8-bnb", "int8-torchao", "int4-torchao", "fp8-torchao", "int8-quanto"):
        t = time.time()
        f = train(
            str(fmt),
            LORA + (f"[plugins.quantize]\nformat='{fmt}'\n" if fmt else ""),
            "run.steps=30",
            "run.gradient_checkpointing=true",
            "checkpoints.every=false",
        )
        l = losses(f)
        print(fmt, f"{l[0]:.5f} {l[-1]:.5f} {sum(l[-5:]) / 5:.5f}", f"{time.time() - t:.1f}s")
