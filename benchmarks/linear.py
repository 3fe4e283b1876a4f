"""Quantized linears against bf16, through F.linear: python benchmarks/linear.py [--n 4096 --k 4096 --m 1 4 64 256]

One process a contender, so that no two thread pools meet; contenders take turns, so that the machine's moods hit all
alike; weights are rotated through more memory than any cache, so that each call reads them from DRAM as a model's
forward does. The read row is what one pass over the int4 weight costs here, the limit for few rows. A contender that
is wrong is not timed.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time

CONTENDERS = (
    "aoq int4",
    "aoq int4 symmetric",
    "aoq int4, AVX2 only",
    "aoq int8-int4",
    "aoq int8",
    "ATen int4",
    "torch bf16",
    "read",
)
GROUP = 128
COLD_BYTES = 400e6


def make(name: str, n: int, k: int):
    """A function of (x, i) for the contender, with enough copies of its weight that none stays in cache."""
    import torch
    from torch.nn.functional import linear

    torch.manual_seed(0)
    w = torch.randn(n, k, dtype=torch.bfloat16) * 0.02

    def copies(one, nbytes):
        return [one()] + [one() for _ in range(int(COLD_BYTES / nbytes))]

    if name == "torch bf16":
        weights = copies(w.clone, w.nbytes)
        return lambda x, i: linear(x, weights[i % len(weights)]), w.float()
    if name == "read":
        words = copies(lambda: torch.randint(99, (n * k // 16 + n * k // GROUP // 4,)), n * k / 2)
        return lambda x, i: words[i % len(words)].sum(), None
    if name == "ATen int4":
        codes = torch.randint(0, 16, (n, k), dtype=torch.int32)
        scale = torch.full((k // GROUP, n, 2), 0.01, dtype=torch.bfloat16)
        scale[..., 1] = 0
        packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)
        weights = copies(packed.clone, n * k / 2)
        op = torch.ops.aten._weight_int4pack_mm_for_cpu
        return lambda x, i: op(x, weights[i % len(weights)], GROUP, scale), (codes - 8) * scale[0, 0, 0].float()

    import aoq

    symmetric, asymmetric = aoq.MappingType.SYMMETRIC, aoq.MappingType.ASYMMETRIC
    configs = {
        "aoq int8": aoq.Int8DynamicActivationInt8WeightConfig(),
        "aoq int8-int4": aoq.Int8DynamicActivationInt4WeightConfig(GROUP, act_mapping_type=symmetric),
        "aoq int4 symmetric": aoq.Int4WeightOnlyConfig(GROUP, mapping_type=symmetric),
    }
    quantized = configs.get(name, aoq.Int4WeightOnlyConfig(GROUP, mapping_type=asymmetric)).quantize(w)
    weights = copies(quantized.clone, quantized.nbytes)
    return lambda x, i: linear(x, weights[i % len(weights)]), quantized.dequantize().float()


def serve(name: str, n: int, k: int, threads: int) -> None:
    """Answers each line "m seconds" on stdin with the median of the calls' times, in seconds."""
    import torch

    torch.set_num_threads(threads)
    with torch.inference_mode():
        run, exact = make(name, n, k)
        calls = 0
        for line in sys.stdin:
            m, budget = int(line.split()[0]), float(line.split()[1])
            x = torch.randn(m, k).bfloat16()
            if exact is not None:
                wanted = x.float() @ exact.t()
                error = (run(x, calls).float() - wanted).norm() / wanted.norm()
                assert error < (0.02 if "int8" in name else 0.01), (
                    f"{name} is wrong at m = {m}: relative error {error:.3f}"
                )
            for _ in range(3):
                run(x, calls)
                calls += 1
            times: list[float] = []
            while sum(times) < budget or len(times) < 3:
                start = time.perf_counter()
                run(x, calls)
                times.append(time.perf_counter() - start)
                calls += 1
            print(statistics.median(times), flush=True)


def measure(args) -> dict:
    """{contender: {m: median seconds over the rounds}}"""
    workers = {}
    for name in CONTENDERS:
        environment = {**os.environ, **({"AOQ_ISA": "avx2"} if "AVX2" in name else {})}
        command = [sys.executable, __file__, "--serve", name, "--n", str(args.n), "--k", str(args.k)]
        command += ["--threads", str(args.threads)]
        pipe = subprocess.PIPE
        workers[name] = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment)
    samples: dict = {name: {m: [] for m in args.m} for name in CONTENDERS}
    from aoq.progress import track

    for m, _ in track([(m, r) for m in args.m for r in range(args.rounds)], "measuring"):
        for name, worker in workers.items():
            time.sleep(0.02)  # the last contender's threads stop spinning
            worker.stdin.write(f"{m} {args.seconds}\n")
            worker.stdin.flush()
            line = worker.stdout.readline()
            if not line:
                sys.exit(f"{name} stopped at m = {m}")
            samples[name][m].append(float(line))
    for worker in workers.values():
        worker.stdin.close()
        worker.wait()
    return {name: {m: statistics.median(times) for m, times in rows.items()} for name, rows in samples.items()}


def cpu_name() -> str:
    with open("/proc/cpuinfo") as lines:
        return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=4096)
    parser.add_argument("--k", type=int, default=4096)
    parser.add_argument("--m", type=int, nargs="+", default=[1, 4, 16, 64, 256])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.15, help="of each contender's turn")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--json", help="write the figures here")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        return serve(args.serve, args.n, args.k, args.threads)

    from aoq import _C

    figures = measure(args)
    machine = f"{cpu_name()}, {args.threads} threads, {_C.isa()}"
    print(f"{args.n}x{args.k}, group {GROUP}, F.linear on bf16 x, cold weights; ms (speed-up over bf16). {machine}\n")
    print("| |" + "".join(f" M={m} |" for m in args.m))
    print("|---|" + "---|" * len(args.m))
    for name, row in figures.items():
        cells = (f" {s * 1e3:.2f} ({figures['torch bf16'][m] / s:.1f}x) |" for m, s in row.items())
        print(f"| {name} |" + "".join(cells))
    if args.json:
        with open(args.json, "w") as file:
            json.dump(
                {"machine": machine, "n": args.n, "k": args.k, "group": GROUP, "seconds": figures}, file, indent=1
            )


if __name__ == "__main__":
    main()
