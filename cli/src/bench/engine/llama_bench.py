"""Measures llama.cpp, by way of llama-cpp-python, as `emberline bench engine` measures its own engine.

Prints JSON: tokens per second of prompts (each alone in an empty cache, and several at once) and of
single-token steps of several sequences at once. As in llama-bench, nothing is sampled.
"""

import argparse
import ctypes
import json
import random
import resource
import statistics
import sys
import time

# What `emberline bench engine` takes for the absence of llama-cpp-python.
NOT_INSTALLED = 3

try:
    import llama_cpp as ll
except ImportError:
    sys.exit(NOT_INSTALLED)


# The unit of ru_maxrss: bytes on macOS, kibibytes elsewhere.
KIBIBYTES = 1 if sys.platform == "darwin" else 1024


def numbers(text):
    return [int(part) for part in text.split(",") if part]


def arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--gpu", action="store_true", help="put all layers on the GPU")
    parser.add_argument("--prompts", type=numbers, default=[128, 512, 1024, 4096])
    parser.add_argument("--batches", type=numbers, default=[1, 8, 32])
    parser.add_argument("--prompt", type=int, default=128, help="tokens of each sequence of a batch")
    parser.add_argument("--steps", type=int, default=32, help="decoding steps of a run")
    parser.add_argument("--repeat", type=int, default=3)
    return parser.parse_args()


class Context:
    """A llama.cpp context for `sequences` sequences of up to `length` tokens."""

    UBATCH = 512  # llama-bench's own default
    BATCH = 2048

    def __init__(self, model, args, sequences, length):
        params = ll.llama_context_default_params()
        length = -(-length // 256) * 256
        params.n_ctx = sequences * length
        params.n_batch = self.BATCH
        params.n_ubatch = self.UBATCH
        params.n_seq_max = sequences
        params.n_threads = params.n_threads_batch = args.threads
        params.offload_kqv = params.op_offload = args.gpu
        params.kv_unified = False
        params.no_perf = True
        self.context = ll.llama_init_from_model(model, params)
        if not self.context:
            sys.exit("llama.cpp can't make a context")
        self.memory = ll.llama_get_memory(self.context)
        self.batch = ll.llama_batch_init(self.BATCH, 0, 1)

    def clear(self):
        ll.llama_memory_clear(self.memory, False)

    def compute(self, rows):
        """`rows` of (token, position, sequence, wants logits), as few calls as there can be."""
        for start in range(0, len(rows), self.BATCH):
            part = rows[start : start + self.BATCH]
            self.batch.n_tokens = len(part)
            for i, (token, position, sequence, logits) in enumerate(part):
                self.batch.token[i] = token
                self.batch.pos[i] = position
                self.batch.n_seq_id[i] = 1
                self.batch.seq_id[i][0] = sequence
                self.batch.logits[i] = logits
            status = ll.llama_decode(self.context, self.batch)
            if status != 0:
                sys.exit(f"llama_decode failed with {status}")
        ll.llama_synchronize(self.context)

    def close(self):
        ll.llama_batch_free(self.batch)
        ll.llama_free(self.context)


def prompt(tokens, sequence=0):
    last = len(tokens) - 1
    return [(token, i, sequence, i == last) for i, token in enumerate(tokens)]


def timed(work):
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def line(amount, seconds, **more):
    middle = statistics.median(seconds)
    return {
        **more,
        "tokens_per_s": amount / middle,
        "seconds": middle,
        "fastest_s": min(seconds),
        "slowest_s": max(seconds),
    }


def main():
    args = arguments()
    silence = ll.llama_log_callback(lambda level, text, data: None)
    ll.llama_log_set(silence, ctypes.c_void_p())
    ll.llama_backend_init()
    if args.gpu and not ll.llama_supports_gpu_offload():
        args.gpu = False
    params = ll.llama_model_default_params()
    params.n_gpu_layers = -1 if args.gpu else 0
    model = ll.llama_model_load_from_file(args.model.encode(), params)
    if not model:
        sys.exit(f"llama.cpp can't load {args.model}")
    vocabulary = ll.llama_vocab_n_tokens(ll.llama_model_get_vocab(model))
    draw = random.Random(1)

    def tokens(count):
        return [draw.randrange(vocabulary) for _ in range(count)]

    prefill, decode = [], []
    if args.prompts:
        context = Context(model, args, 1, max(args.prompts))
        context.compute(prompt(tokens(64)))  # touches the weights, starts the threads
        for count in args.prompts:
            seconds = []
            for _ in range(args.repeat):
                context.clear()
                rows = prompt(tokens(count))
                seconds.append(timed(lambda: context.compute(rows)))
            prefill.append(line(count, seconds, batch=1, prompt_tokens=count))
        context.close()
    for size in args.batches:
        context = Context(model, args, size, args.prompt + args.steps * args.repeat + 1)
        rows = [row for sequence in range(size) for row in prompt(tokens(args.prompt), sequence)]
        context.clear()
        seconds = [timed(lambda: context.compute(rows))]
        if size > 1:
            prefill.append(line(len(rows), seconds, batch=size, prompt_tokens=args.prompt))
        seconds = []
        position = args.prompt
        for repeat in range(-1, args.repeat):
            steps = 2 if repeat < 0 else args.steps  # the first two are for warming up
            all_rows = [
                [(token, position + step, sequence, True) for sequence, token in enumerate(tokens(size))]
                for step in range(steps)
            ]
            position += steps
            took = timed(lambda: [context.compute(rows) for rows in all_rows])
            if repeat >= 0:
                seconds.append(took / steps)
        decode.append(line(size, seconds, batch=size, prompt_tokens=args.prompt))
        context.close()
    print(
        json.dumps(
            {
                "version": ll.__version__,
                "system": ll.llama_print_system_info().decode(),
                "gpu": args.gpu,
                "threads": args.threads,
                "prefill": prefill,
                "decode": decode,
                "peak_memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KIBIBYTES,
            }
        )
    )


main()
