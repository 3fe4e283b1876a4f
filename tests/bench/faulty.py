"""Contenders that go wrong in every way, and one that does not. `aoq.bench` loads this file as one of its own."""

import os
import time

from ..contender import Contender


class Right(Contender):
    name, op, package = "right", "bf16", "torch"
    w_rounded = False

    def weight(self, problem):
        return problem.w

    def multiply(self, x, weight):
        return x @ weight.t()


class _Int4(Contender):
    op, package, form = "int4_mm", "torch", "int4"

    def weight(self, problem):
        return problem.exact("int4").bfloat16()

    def multiply(self, x, weight):
        return x @ weight.t()


class Good(_Int4):
    name = "good"


class Wrong(_Int4):
    name = "wrong"

    def multiply(self, x, weight):
        out = x @ weight.t()
        out[-1, -1] += 0.1
        return out


class NotANumber(_Int4):
    name = "not a number"

    def multiply(self, x, weight):
        return (x @ weight.t()).fill_(float("nan"))


class Crashes(_Int4):
    name = "crashes"

    def multiply(self, x, weight):
        if len(x) > 1:
            print("about to crash", file=__import__("sys").stderr, flush=True)
            os.abort()
        return x @ weight.t()


class Hangs(_Int4):
    name = "hangs"

    def multiply(self, x, weight):
        time.sleep(1000)


class Missing(_Int4):
    name = "missing"

    def __init__(self, threads, device="cpu"):
        raise ImportError("no such peer")


class CannotDoThis(_Int4):
    name = "cannot do this"

    def weight(self, problem):
        if problem.k == 64:
            raise NotImplementedError("k = 64 is too small")
        return super().weight(problem)


class Raises(_Int4):
    name = "raises"

    def weight(self, problem):
        print("noise on stdout")
        raise KeyError("nothing there")


class ModelThatFails(_Int4):
    name = "model that fails"
    models = True

    def quantize_model(self, model, selects, group_size):
        raise ValueError("no such layer")
