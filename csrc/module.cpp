// The extension module of one instruction set. CMake names it (ELLZERO_MODULE) and lists every bind_*.cpp in
// bindings.inc, so a new kernel is a new file and nothing here changes.
#include <nanobind/nanobind.h>

namespace nb = nanobind;

#define BIND(name) void name(nb::module_ &);
#include "bindings.inc"
#undef BIND

NB_MODULE(ELLZERO_MODULE, m) {
    nb::set_leak_warnings(false);  // what caches still hold when Python ends is no fault
    m.doc() = "Compiled kernels of ellzero for one instruction set; called through their wrappers in Python.";
#define BIND(name) name(m);
#include "bindings.inc"
#undef BIND
}
