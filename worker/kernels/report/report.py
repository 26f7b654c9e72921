"""What NVIDIA's compiler makes of the GPU kernels, and an estimate of what a step takes, without a GPU.

    report.py SOURCES [--json FILE] [--bounds FILE] [--kernels]

SOURCES is the folder that emberline-kernels-report writes. Each kernel is compiled by NVRTC for each architecture and
disassembled. Of a product's loop the report tells instructions for each weight and loads by their width; of each
kernel, registers, spills and tensor core instructions (HMMA). --kernels lists all of them, --bounds fails where a
bound of FILE does not hold.

The times are estimates by this model; nothing is measured. A launch takes the longest of
  memory   bytes / the card's bandwidth,
  cache    bytes that all cubes of a product read / the bandwidth of the L2 cache,
  issue    instructions of the multiprocessor that has most cubes / (4 a cycle),
  matrix   multiplications of its matrix units / what they do in a cycle by such instructions,
  latency  rounds of loads * waves of cubes * the latency of a load, which is what too few bytes in flight cost,
plus LAUNCH for the gap between two launches. Of kernels that are no products it knows memory and latency only. The
bandwidths of caches and the rates of matrix units are what others measured, rounded.
"""

import argparse
import collections
import concurrent.futures
import ctypes
import json
import math
import re
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

LAUNCH = 2.5e-6
LIMITS = ("memory", "cache", "issue", "matrix", "latency", "launch")
# Multiplications of one HMMA of a plane: 16 outputs, 8 rows, 16 inputs.
HMMA = 16 * 8 * 16


@dataclass(frozen=True)
class Card:
    arch: str
    multiprocessors: int
    hertz: float
    bandwidth: float
    # Of the L2 cache.
    cache: float
    # Multiplications of f16, added in f32, that a multiprocessor's matrix units do in a cycle.
    matrix: float
    # Seconds until a load from memory arrives while others are in flight; no data sheet has it.
    latency: float
    threads: int
    cubes: int
    registers: int
    shared: int


CARDS = {
    "H200": Card("sm_90", 132, 1.98e9, 4.8e12, 5.5e12, 1280, 0.6e-6, 2048, 32, 65536, 228 << 10),
    "RTX 4090": Card("sm_89", 128, 2.52e9, 1.0e12, 5.0e12, 256, 0.5e-6, 1536, 24, 65536, 100 << 10),
}


@dataclass
class Kernel:
    """What the compiler made of a kernel for one architecture."""

    instructions: int
    registers: int
    spills: int
    hmma: int
    shared: int
    # Of the longest innermost loop.
    loop: int
    loop_hmma: int
    loads: dict


def packaged(pattern):
    """A file of the packages nvidia-*, which lie in one folder."""
    for folder in map(Path, sys.path):
        for found in sorted((folder / "nvidia").glob(f"**/{pattern}"), reverse=True):
            return found
    sys.exit(f"error: {pattern} is missing; install {Path(__file__).with_name('requirements.txt')}")


def compiled(source, arch):
    """The machine code of `source`."""
    nvrtc = ctypes.CDLL(str(packaged("libnvrtc.so.*")))

    def check(status):
        if status != 0:
            size = ctypes.c_size_t()
            nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
            log = ctypes.create_string_buffer(size.value)
            nvrtc.nvrtcGetProgramLog(program, log)
            sys.exit(f"error: NVRTC refuses a kernel for {arch}\n{log.value.decode(errors='replace')}")

    program = ctypes.c_void_p()
    check(nvrtc.nvrtcCreateProgram(ctypes.byref(program), source, b"kernel.cu", 0, None, None))
    include = packaged("cuda_fp16.h").parent
    # As cubecl compiles.
    target = arch + ("a" if arch >= "sm_90" else "")
    options = [f"--gpu-architecture={target}", f"--include-path={include}", "-lineinfo"]
    values = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
    check(nvrtc.nvrtcCompileProgram(program, len(options), values))
    size = ctypes.c_size_t()
    check(nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(size)))
    cubin = ctypes.create_string_buffer(size.value)
    check(nvrtc.nvrtcGetCUBIN(program, cubin))
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    return cubin.raw


def disassembled(cubin):
    """Instructions, without predicates, and the loops among them as ranges."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [packaged("nvdisasm"), "-c", file.name]
        listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    code, labels, branches = [], {}, []
    inside = False
    for line in listing.splitlines():
        if line.lstrip().startswith(".text."):
            inside = True
        elif inside and (label := re.match(r"\s*\.(L_\w+):", line)):
            labels[label[1]] = len(code)
        elif inside and (found := re.search(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?(\S[^;]*?)\s*;", line)):
            if found[1].startswith("BRA") and (target := re.search(r"\.(L_\w+)", found[1])):
                branches.append((len(code), target[1]))
            code.append(found[1])
    loops = [(labels[target], at + 1) for at, target in branches if labels.get(target, at) < at]
    return code, loops


def load_width(instruction):
    bits = re.search(r"\.(128|64|U16|S16|U8|S8)\b", instruction.split()[0])
    return {None: 4, "128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}[bits and bits[1]]


def examine(source, arch, shared):
    code, loops = disassembled(compiled(source, arch))
    innermost = [
        (first, end)
        for first, end in loops
        if not any((a, b) != (first, end) and first <= a and b <= end for a, b in loops)
    ]
    first, end = max(innermost, key=lambda loop: loop[1] - loop[0], default=(0, 0))
    names = [instruction.split()[0].split(".")[0] for instruction in code]
    loads = collections.Counter(
        f"{name}.{8 * load_width(instruction)}"
        for name, instruction in zip(names[first:end], code[first:end])
        if name in ("LDG", "LDS")
    )
    numbers = [int(number) for instruction in code for number in re.findall(r"\bR(\d+)\b", instruction)]
    return Kernel(
        instructions=len([name for name in names if name != "NOP"]),
        registers=max(numbers, default=-1) + 1,
        spills=names.count("LDL") + names.count("STL"),
        hmma=names.count("HMMA"),
        shared=shared,
        loop=end - first,
        loop_hmma=names[first:end].count("HMMA"),
        loads=dict(sorted(loads.items())),
    )


def waves(launch, kernel, card):
    """How many times the card is filled with cubes."""
    threads = launch["threads"]
    # Registers are handed out in eights.
    registers = max(kernel.registers + 7, 8) // 8 * 8
    resident = min(
        card.threads // threads,
        card.cubes,
        card.registers // (registers * threads),
        card.shared // (kernel.shared + 1024),
    )
    return math.ceil(launch["cubes"] / (card.multiprocessors * max(resident, 1)))


def estimate(launch, kernel, card):
    """Seconds of each limit for one launch."""
    memory = launch["bytes"] / card.bandwidth
    latency = launch["rounds"] * waves(launch, kernel, card) * card.latency
    issue = cache = matrix = 0.0
    if launch["product"]:
        thread = kernel.instructions + kernel.loop * (launch["rounds"] - 1)
        cubes = math.ceil(launch["cubes"] / card.multiprocessors)
        planes = cubes * math.ceil(launch["threads"] / 32)
        issue = planes * thread / 4 / card.hertz
        cache = launch["cubes"] * launch["product"]["cube_bytes"] / card.cache
        matrix = planes * kernel.loop_hmma * launch["rounds"] * HMMA / card.matrix / card.hertz
    return {"memory": memory, "cache": cache, "issue": issue, "matrix": matrix, "latency": latency}


def step_report(step, kernels):
    """Launches, bytes and estimated times of a step."""
    launches = step["launches"]
    report = {key: step[key] for key in ("gpu", "network", "format", "step")}
    report["launches"] = sum(launch["count"] for launch in launches)
    report["launches_per_layer"] = sum(1 for launch in launches if launch["count"] == step["layers"])
    report["bytes"] = sum(launch["count"] * launch["bytes"] for launch in launches)
    report["cubes"] = {launch["operation"]: launch["cubes"] for launch in launches}
    report["cards"] = {}
    for name, card in CARDS.items():
        total, limits = 0.0, collections.Counter()
        for launch in launches:
            parts = estimate(launch, kernels[launch["kernel"]][card.arch], card)
            limit = max(parts, key=parts.get)
            total += launch["count"] * (parts[limit] + LAUNCH)
            limits[limit] += launch["count"] * parts[limit]
            limits["launch"] += launch["count"] * LAUNCH
        report["cards"][name] = {"seconds": total, "by": {limit: limits[limit] for limit in sorted(limits)}}
    return report


def products(steps, kernels):
    """The kernels of products, each with the largest matrix that it multiplies."""
    found = {}
    for step in steps:
        for launch in step["launches"]:
            product = launch["product"]
            if product and product["outputs"] >= found.get(launch["kernel"], {"outputs": 0})["outputs"]:
                found[launch["kernel"]] = product | {"operation": launch["operation"]}
    rows = []
    for kernel, product in sorted(found.items(), key=lambda item: (item[1]["format"], item[1]["rows"])):
        for arch, code in sorted(kernels[kernel].items()):
            rows.append(
                {
                    "format": product["format"],
                    "operation": product["operation"],
                    "rows": product["rows"],
                    "arch": arch,
                    "instructions_per_weight": code.loop / product["weights"],
                    **asdict(code),
                }
            )
    return rows


def broken(bounds, steps, product_rows, kernels):
    """The bounds that do not hold, in words."""
    for row in product_rows:
        bound = bounds["instructions_per_weight"].get(row["format"])
        if row["rows"] == 1 and bound is not None and row["instructions_per_weight"] > bound:
            yield (
                f"{row['format']}, {row['operation']}, {row['arch']}: "
                f"{row['instructions_per_weight']:.2f} instructions per weight, bound {bound}"
            )
    spills = sum(code.spills for kernel in kernels for code in kernel.values())
    if spills > bounds["spills"]:
        yield f"{spills} spills, bound {bounds['spills']}"
    for step in steps:
        for launch in step["launches"]:
            least = bounds["cubes"].get(step["network"], {}).get(step["gpu"], 0)
            if step["step"].startswith("decode") and launch["product"] and launch["cubes"] < least:
                yield (
                    f"{step['gpu']}, {step['network']}, {step['format']}, {step['step']}, {launch['operation']}: "
                    f"{launch['cubes']} cubes, bound {least}"
                )
        least = bounds["attention_cubes"].get(step["network"], 0)
        attention = max(launch["cubes"] for launch in step["launches"] if launch["operation"] == "attention")
        if step["step"].startswith("decode") and attention < least:
            yield f"{step['network']}, {step['step']}: {attention} cubes of attention, bound {least}"
        layer = sum(1 for launch in step["launches"] if launch["count"] == step["layers"])
        most = bounds["launches_per_layer"].get(step["step"], bounds["launches_per_layer"][step["gpu"]])
        if layer > most:
            yield f"{step['gpu']}, {step['network']}, {step['step']}: {layer} launches in a layer, bound {most}"


def table(head, rows):
    print("| " + " | ".join(head) + " |")
    print("|" + "---|" * len(head))
    for row in rows:
        print("| " + " | ".join(map(str, row)) + " |")
    print()


def print_products(rows):
    print("Products: instructions of the loop for each weight (and all of the rows of a thread), and its loads by bits.\n")
    head = ["format", "product", "rows", "arch", "instructions/weight", "loads", "HMMA", "registers", "spills", "shared"]
    table(
        head,
        [
            [
                row["format"],
                row["operation"],
                row["rows"],
                row["arch"],
                f"{row['instructions_per_weight']:.2f}",
                ", ".join(f"{count} {load}" for load, count in row["loads"].items()),
                row["hmma"],
                row["registers"],
                row["spills"],
                row["shared"],
            ]
            for row in rows
        ],
    )


def print_steps(reports):
    print("Steps: the times are estimates by the model in report.py, not measurements.\n")
    head = ["matrix units", "network", "format", "step", "launches", "a layer", "MB moved"]
    head += [f"{name}: estimate, ms ({', '.join(LIMITS)})" for name in CARDS]
    rows = []
    for report in reports:
        row = [report["gpu"], report["network"], report["format"], report["step"], report["launches"], report["launches_per_layer"]]
        row.append(f"{report['bytes'] / 1e6:.0f}")
        for card in report["cards"].values():
            parts = [card["by"].get(limit, 0) * 1e3 for limit in LIMITS]
            row.append(f"{card['seconds'] * 1e3:.2f} ({', '.join(f'{part:.2f}' for part in parts)})")
        rows.append(row)
    table(head, rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--bounds", type=Path)
    parser.add_argument("--kernels", action="store_true")
    arguments = parser.parse_args()
    recorded = json.loads((arguments.sources / "launches.json").read_text())
    archs = sorted({card.arch for card in CARDS.values()})
    with concurrent.futures.ProcessPoolExecutor() as pool:
        jobs = [
            {
                arch: pool.submit(examine, (arguments.sources / kernel["file"]).read_bytes(), arch, kernel["shared_bytes"])
                for arch in archs
            }
            for kernel in recorded["kernels"]
        ]
        kernels = [{arch: job.result() for arch, job in of.items()} for of in jobs]
    steps = recorded["steps"]
    product_rows, reports = products(steps, kernels), [step_report(step, kernels) for step in steps]
    print_products(product_rows)
    if arguments.kernels:
        head = ["kernel", "arch", "instructions", "registers", "spills", "HMMA", "shared"]
        listed = zip(recorded["kernels"], kernels)
        table(
            head,
            [
                [kernel["file"], arch, code.instructions, code.registers, code.spills, code.hmma, code.shared]
                for kernel, of in listed
                for arch, code in of.items()
            ],
        )
    print_steps(reports)
    if arguments.json:
        whole = {"model": __doc__, "products": product_rows, "steps": reports}
        arguments.json.write_text(json.dumps(whole, indent=1))
    if arguments.bounds:
        found = list(broken(json.loads(arguments.bounds.read_text()), steps, product_rows, kernels))
        for line in found:
            print(f"bound: {line}", file=sys.stderr)
        sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
