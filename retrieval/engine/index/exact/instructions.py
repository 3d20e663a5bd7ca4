"""Machine instructions that Numba does not offer: byte dot products, with AVX-512 VNNI or with any instruction set.

Each instruction exists in two forms that give equal bits. The type of a kernel's first argument chooses: an integer
(`Vnni().form`) emits `vpdpbusd`, which multiplies 64 pairs of bytes and adds them in groups of four; a float
(`Portable().form`) emits general vector code that LLVM translates for any processor.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import llvmlite.binding as llvm
import numba
from llvmlite import ir
from numba import types
from numba.core.registry import cpu_target
from numba.extending import intrinsic

BLOCK = 64  # vectors that are scanned together
LANES = 16  # sums in one register
GROUP = 4  # queries that are compared with a block in one pass

_I8, _I16, _I32, _I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
_SUMS, _BYTES = ir.VectorType(_I32, LANES), ir.VectorType(_I8, BLOCK)
_VNNI = "llvm.x86.avx512.vpdpbusd.512"
_BYTE_OPERANDS_FROM = 22  # since this version of LLVM the operands of vpdpbusd are vectors of bytes

array_at = numba.carray  # type: ignore[attr-defined]  # of a pointer, a shape, a type; for compiled code only

_Value: TypeAlias = Any  # llvmlite's values have no common public type


class Vnni(NamedTuple):
    """Chooses the form that needs AVX-512 VNNI."""

    form: int = 0


class Portable(NamedTuple):
    """Chooses the form that runs on every processor."""

    form: float = 0.0


Form: TypeAlias = Vnni | Portable


def has_vnni() -> bool:
    """Return whether Numba compiles for a processor with AVX-512 VNNI; its environment variables may switch it off."""
    return has_features("avx512f", "avx512bw", "avx512vnni")


def has_features(*names: str) -> bool:
    """Return whether Numba compiles for a processor with all of these features, by their names in LLVM."""
    features = str(cpu_target.target_context.codegen().magic_tuple()[2]).split(",")
    return all(f"+{name}" in features for name in names)


@intrinsic(prefer_literal=True)
def scan_block(context, form, block, codes, stride, n_groups, limits, masks, n_queries):  # type: ignore[no-untyped-def]
    """Compare the 64 vectors of a block with queries: write a bit mask per query, and return all masks combined.

    block: address of [n_groups][64] groups of four bytes, aligned to 64. A byte of the first group is one code, a byte
    of another group is two: its lower half, then its upper half. codes: address of [n_queries] rows of signed bytes in
    groups of four, `stride` groups apart: one group for the first of the block, and for each other one that meets the
    lower halves and one that meets the upper halves. limits: address of [n_queries] int32. masks: address of
    [n_queries] uint64; bit i is set if the inner product with vector i is at least the limit. n_queries: literal.
    """
    width = n_queries.literal_value
    signature = types.uint64(form, *[types.int64] * 6, n_queries)

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        _, block, codes, stride, n_groups, limits, masks, _ = arguments
        rows = builder.inttoptr(block, _SUMS.as_pointer())
        queries = builder.inttoptr(codes, _I32.as_pointer())
        registers = range(BLOCK // LANES)

        def load(group: _Value) -> list[_Value]:
            base = builder.mul(group, _I64(len(registers)))
            loaded = [builder.load(builder.gep(rows, [builder.add(base, _I64(register))])) for register in registers]
            for value in loaded:
                value.align = BLOCK
            return loaded

        def add(sums: list[list[_Value]], bytes_: list[_Value], position: _Value) -> list[list[_Value]]:
            added = []
            for query in range(width):
                offset = builder.add(builder.mul(stride, _I64(query)), position)
                code = _repeated(builder, builder.load(builder.gep(queries, [offset])))
                added.append([_dot(builder, form, sums[query][r], bytes_[r], code) for r in registers])
            return added

        zeros = [[ir.Constant(_SUMS, [0] * LANES) for _ in registers] for _ in range(width)]
        first = add(zeros, load(_I64(0)), _I64(0))
        before = builder.block
        loop, end = builder.append_basic_block("loop"), builder.append_basic_block("end")
        builder.cbranch(builder.icmp_signed(">", n_groups, _I64(1)), loop, end)
        builder.position_at_end(loop)
        group = builder.phi(_I64)
        sums = [[builder.phi(_SUMS) for _ in registers] for _ in range(width)]
        half, four = (ir.Constant(_SUMS, [value] * LANES) for value in (0x0F0F0F0F, 4))
        loaded, position = load(group), builder.mul(group, _I64(2))
        lower = [builder.and_(value, half) for value in loaded]
        upper = [builder.and_(builder.lshr(value, four), half) for value in loaded]
        added = add(add(sums, lower, builder.sub(position, _I64(1))), upper, position)
        following = builder.add(group, _I64(1))
        group.add_incoming(_I64(1), before)
        group.add_incoming(following, loop)
        builder.cbranch(builder.icmp_signed("<", following, n_groups), loop, end)
        builder.position_at_end(end)
        totals = [[builder.phi(_SUMS) for _ in registers] for _ in range(width)]
        for query in range(width):
            for register in registers:
                sums[query][register].add_incoming(first[query][register], before)
                sums[query][register].add_incoming(added[query][register], loop)
                totals[query][register].add_incoming(first[query][register], before)
                totals[query][register].add_incoming(added[query][register], loop)
        return _write_masks(builder, totals, builder.inttoptr(limits, _I32.as_pointer()), masks)

    return signature, generate


@intrinsic
def row_dot(context, form, row, codes, n_chunks):  # type: ignore[no-untyped-def]
    """Return the inner product of `n_chunks` * 64 unsigned bytes and as many signed bytes; both are addresses."""
    signature = types.int32(form, types.int64, types.int64, types.int64)

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        _, row, codes, n_chunks = arguments
        rows, queries = (builder.inttoptr(address, _SUMS.as_pointer()) for address in (row, codes))
        before = builder.block
        loop, end = builder.append_basic_block("loop"), builder.append_basic_block("end")
        builder.branch(loop)
        builder.position_at_end(loop)
        step, total = builder.phi(_I64), builder.phi(_SUMS)
        step.add_incoming(_I64(0), before)
        total.add_incoming(ir.Constant(_SUMS, [0] * LANES), before)
        left, right = (builder.load(builder.gep(pointer, [step])) for pointer in (rows, queries))
        left.align = right.align = 1
        added = _dot(builder, form, total, left, right)
        following = builder.add(step, _I64(1))
        step.add_incoming(following, loop)
        total.add_incoming(added, loop)
        builder.cbranch(builder.icmp_signed("<", following, n_chunks), loop, end)
        builder.position_at_end(end)
        reduce = builder.module.declare_intrinsic("llvm.vector.reduce.add.v16i32", (), ir.FunctionType(_I32, (_SUMS,)))
        return builder.call(reduce, (added,))

    return signature, generate


@intrinsic
def bits_of(context, value):  # type: ignore[no-untyped-def]
    """Return the 32 bits of a float32 as an int32."""

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], _I32)

    return types.int32(types.float32), generate


@intrinsic
def float_of(context, bits):  # type: ignore[no-untyped-def]
    """Return the float32 that has these 32 bits."""

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.int32), generate


@intrinsic
def pointer_to(context, address):  # type: ignore[no-untyped-def]
    """Return an address as a pointer, for `carray`."""

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], _I8.as_pointer())

    return types.voidptr(types.int64), generate


@intrinsic
def prefetch(context, address):  # type: ignore[no-untyped-def]
    """Ask for the cache line at an address before it is needed."""
    return types.void(types.int64), _prefetch


def _prefetch(context: Any, builder: Any, _: Any, arguments: Any) -> Any:
    pointer = builder.inttoptr(arguments[0], _I8.as_pointer())
    kind = ir.FunctionType(ir.VoidType(), (_I8.as_pointer(), _I32, _I32, _I32))
    ask = builder.module.declare_intrinsic("llvm.prefetch.p0", (), kind)
    builder.call(ask, (pointer, _I32(0), _I32(3), _I32(1)))
    return context.get_dummy_value()


@intrinsic
def lowest_bit(context, word):  # type: ignore[no-untyped-def]
    """Return the position of the lowest bit set in a word that is not 0."""

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(types.uint64), generate


def _dot(builder: Any, form: Any, sums: _Value, unsigned: _Value, signed: _Value) -> _Value:
    """Add to each of 16 sums the products of four unsigned and four signed bytes."""
    if isinstance(form, types.Integer):
        return _vnni_dot(builder, sums, unsigned, signed)
    low = ir.Constant(_SUMS, [0x00FF00FF] * LANES)
    eight = ir.Constant(_SUMS, [8] * LANES)
    twice = ir.VectorType(_I16, 2 * LANES)
    for shift in (False, True):  # the even bytes, then the odd ones, as pairs of 16 bits
        left = builder.and_(builder.lshr(unsigned, eight) if shift else unsigned, low)
        if shift:
            right = builder.ashr(builder.bitcast(signed, twice), ir.Constant(twice, [8] * 2 * LANES))
        else:
            shifted = builder.shl(builder.bitcast(signed, twice), ir.Constant(twice, [8] * 2 * LANES))
            right = builder.ashr(shifted, ir.Constant(twice, [8] * 2 * LANES))
        sums = builder.add(sums, _pairs(builder, builder.bitcast(left, twice), right))
    return sums


def _pairs(builder: Any, left: _Value, right: _Value) -> _Value:
    """Return the 16 sums of two products each of 32 numbers of 16 bits; LLVM has one instruction for this."""
    wide = ir.VectorType(_I32, 2 * LANES)
    products = builder.mul(builder.sext(left, wide), builder.sext(right, wide))
    nothing = ir.Constant(wide, ir.Undefined)
    even, odd = (
        builder.shuffle_vector(products, nothing, ir.Constant(_SUMS, [2 * lane + first for lane in range(LANES)]))
        for first in (0, 1)
    )
    return builder.add(even, odd)


def _vnni_dot(builder: Any, sums: _Value, unsigned: _Value, signed: _Value) -> _Value:
    if llvm.llvm_version_info[0] >= _BYTE_OPERANDS_FROM:
        unsigned, signed = builder.bitcast(unsigned, _BYTES), builder.bitcast(signed, _BYTES)
    kind = ir.FunctionType(_SUMS, (_SUMS, unsigned.type, signed.type))
    return builder.call(builder.module.declare_intrinsic(_VNNI, (), kind), (sums, unsigned, signed))


def _repeated(builder: Any, value: _Value) -> _Value:
    """Return a register that holds one number 16 times."""
    undefined = ir.Constant(_SUMS, ir.Undefined)
    first = builder.insert_element(undefined, value, _I32(0))
    return builder.shuffle_vector(first, undefined, ir.Constant(_SUMS, [0] * LANES))


def _write_masks(builder: Any, sums: list[list[_Value]], limits: _Value, masks: _Value) -> _Value:
    """Write, for each query, the 64 bits that say which sums reach its limit; return all bits combined."""
    words = builder.inttoptr(masks, _I64.as_pointer())
    found = _I64(0)
    for query, registers in enumerate(sums):
        limit = _repeated(builder, builder.load(builder.gep(limits, [_I64(query)])))
        mask = _I64(0)
        for number, register in enumerate(registers):
            bits = builder.bitcast(builder.icmp_signed(">=", register, limit), _I16)
            mask = builder.or_(mask, builder.shl(builder.zext(bits, _I64), _I64(LANES * number)))
        builder.store(mask, builder.gep(words, [_I64(query)]))
        found = builder.or_(found, mask)
    return found
