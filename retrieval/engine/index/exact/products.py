"""Multiplies a stored vector of 16-bit or 32-bit floats with a query: the exact score, equal bits on every processor.

Numba knows no 16-bit floats on a processor. So their bits are passed as uint16, and are turned into float32 here: by an
instruction where the processor has one, by arithmetic elsewhere. Both are exact.
"""

from __future__ import annotations

from typing import Any, TypeAlias

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from retrieval.engine.index.exact.instructions import LANES, has_features

_I16, _I32 = ir.IntType(16), ir.IntType(32)
_FLOAT, _DOUBLE = ir.FloatType(), ir.DoubleType()
_LEAST_NORMAL, _REBIAS = 0x400, (127 - 15) << 23  # of 16-bit floats; the difference of the exponents' biases

_Value: TypeAlias = Any  # llvmlite's values have no common public type


@intrinsic
def float_dot(context, row, query, n_chunks):  # type: ignore[no-untyped-def]
    """Return the inner product of `n_chunks` * 16 numbers in float64, added in 16 lanes.

    row: array of float32, or of uint16 that are the bits of float16. query: array of float32. The lanes are added in
    halves: 0 to 8, 1 to 9 and so on, then 0 to 4, then 0 to 2, then 0 to 1.
    """
    signature = types.float64(row, query, types.int64)

    def generate(context: Any, builder: Any, _: Any, arguments: Any) -> Any:
        addresses = [_address(context, builder, each, arguments[i]) for i, each in enumerate((row, query))]
        rows, queries = (
            builder.bitcast(address, ir.VectorType(address.type.pointee, LANES).as_pointer()) for address in addresses
        )
        n_chunks, doubles = arguments[2], ir.VectorType(_DOUBLE, LANES)
        before = builder.block
        loop, end = builder.append_basic_block("loop"), builder.append_basic_block("end")
        zeros = ir.Constant(doubles, [0.0] * LANES)
        builder.cbranch(builder.icmp_signed(">", n_chunks, n_chunks.type(0)), loop, end)
        builder.position_at_end(loop)
        step, total = builder.phi(n_chunks.type), builder.phi(doubles)
        left, right = (_widened(builder, _loaded(builder, pointer, step)) for pointer in (rows, queries))
        added = builder.fadd(total, builder.fmul(left, right))
        following = builder.add(step, n_chunks.type(1))
        inside = builder.block
        for phi, first, later in ((step, n_chunks.type(0), following), (total, zeros, added)):
            phi.add_incoming(first, before)
            phi.add_incoming(later, inside)
        builder.cbranch(builder.icmp_signed("<", following, n_chunks), loop, end)
        builder.position_at_end(end)
        result = builder.phi(doubles)
        result.add_incoming(zeros, before)
        result.add_incoming(added, inside)
        return _sum_of_lanes(builder, result)

    return signature, generate


@intrinsic
def number_at(context, row, i):  # type: ignore[no-untyped-def]
    """Return one number of a row, as `float_dot` reads it, in float64."""
    signature = types.float64(row, types.int64)

    def generate(context: Any, builder: Any, _: Any, arguments: Any) -> Any:
        place = builder.gep(_address(context, builder, row, arguments[0]), [arguments[1]])
        return _widened(builder, builder.load(place))

    return signature, generate


def _address(context: Any, builder: Any, kind: Any, array: _Value) -> _Value:
    """Return the address of the first element of an array that has no gaps."""
    return context.make_array(kind)(context, builder, array).data


def _loaded(builder: Any, pointer: _Value, step: _Value) -> _Value:
    """Return a register of numbers that need not be aligned."""
    value = builder.load(builder.gep(pointer, [step]))
    value.align = 2 if pointer.type.pointee.element == _I16 else 4
    return value


def _widened(builder: Any, value: _Value) -> _Value:
    """Return numbers in float64: a vector, or one."""

    def like(element: Any) -> Any:
        return ir.VectorType(element, LANES) if isinstance(value.type, ir.VectorType) else element

    if value.type in (_I16, ir.VectorType(_I16, LANES)):
        value = _from_half(builder, value, like)
    return builder.fpext(value, like(_DOUBLE))


def _from_half(builder: Any, bits: _Value, like: Any) -> _Value:
    """Return the float32 that equals a finite float16."""
    if has_features("f16c"):
        return builder.fpext(builder.bitcast(bits, like(ir.HalfType())), like(_FLOAT))

    def constant(number: float, kind: Any = _I32) -> ir.Constant:
        return ir.Constant(like(kind), [number] * LANES if isinstance(like(kind), ir.VectorType) else number)

    wide = builder.zext(bits, like(_I32))
    sign = builder.shl(builder.and_(wide, constant(0x8000)), constant(16))
    size = builder.and_(wide, constant(0x7FFF))
    normal = builder.add(builder.shl(size, constant(13)), constant(_REBIAS))
    small = builder.fmul(builder.uitofp(size, like(_FLOAT)), constant(2.0**-24, _FLOAT))
    is_small = builder.icmp_unsigned("<", size, constant(_LEAST_NORMAL))
    found = builder.select(is_small, builder.bitcast(small, like(_I32)), normal)
    return builder.bitcast(builder.or_(found, sign), like(_FLOAT))


def _sum_of_lanes(builder: Any, lanes: _Value) -> _Value:
    """Add the upper half of the lanes to the lower half until one is left."""
    width = LANES
    while width > 1:
        width //= 2
        nothing = ir.Constant(lanes.type, ir.Undefined)
        halves = (
            builder.shuffle_vector(
                lanes, nothing, ir.Constant(ir.VectorType(_I32, width), list(range(first, first + width)))
            )
            for first in (0, width)
        )
        lanes = builder.fadd(*halves)
    return builder.extract_element(lanes, _I32(0))
