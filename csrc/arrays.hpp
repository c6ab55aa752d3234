// Arrays at the border: taken without a copy or refused by name, bounds checked here and nowhere deeper.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstdint>
#include <string>

namespace ellzero {

namespace nb = nanobind;

// A C-contiguous CPU array of T with N axes; const T also accepts read-only memory.
template <class T, int N> struct ArrayType;
template <class T> struct ArrayType<T, 1> { using type = nb::ndarray<T, nb::ndim<1>, nb::c_contig, nb::device::cpu>; };
template <class T> struct ArrayType<T, 2> { using type = nb::ndarray<T, nb::ndim<2>, nb::c_contig, nb::device::cpu>; };
template <class T, int N> using Array = typename ArrayType<T, N>::type;

template <class T> const char *dtype_name();
template <> inline const char *dtype_name<float>() { return "float32"; }
template <> inline const char *dtype_name<double>() { return "float64"; }
template <> inline const char *dtype_name<std::int64_t>() { return "int64"; }
template <> inline const char *dtype_name<std::int32_t>() { return "int32"; }
template <> inline const char *dtype_name<bool>() { return "bool"; }

inline std::string describe(nb::handle x) {
    std::string text = nb::type_name(x.type()).c_str();
    for (const char *field : {"dtype", "shape", "strides"})
        if (nb::hasattr(x, field)) text += std::string(", ") + field + " " + nb::str(nb::handle(nb::object(x.attr(field)))).c_str();
    if (nb::hasattr(x, "flags") && nb::hasattr(x.attr("flags"), "writeable") &&
        !nb::cast<bool>(x.attr("flags").attr("writeable")))
        text += ", read-only";
    return text;
}

// The array behind `x` in place, or a TypeError that names the argument, what came and what is wanted.
template <class T, int N> Array<T, N> take(nb::handle x, const char *name) {
    Array<T, N> array;
    if (!x.is_none() && nb::try_cast(x, array, false)) return array;
    using Plain = std::remove_const_t<T>;
    std::string want = std::is_const_v<T> ? "a" : "a writable";
    throw nb::type_error((std::string(name) + ": got " + describe(x) + "; want " + want + " C-contiguous " +
                          dtype_name<Plain>() + " CPU array with " + std::to_string(N) + " axes")
                             .c_str());
}

// Whether `x` holds T, whatever its layout: picks the overload before `take` judges the rest.
template <class T> bool holds(nb::handle x) {
    nb::ndarray<nb::ro> any;
    return !x.is_none() && nb::try_cast(x, any, false) && any.dtype() == nb::dtype<T>();
}

inline void want(bool ok, const char *message) {
    if (!ok) throw nb::value_error(message);
}

}  // namespace ellzero
