// What this module is: its CPU's features, its OpenMP, and the note that a fork has happened.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>
#include <dlfcn.h>
#include <pthread.h>

#include <cstdint>
#include <string>
#include <vector>

#include "threads.hpp"

namespace nb = nanobind;

namespace ellzero {
bool forked = false;
OpenMP openmp;
}  // namespace ellzero

namespace {

std::vector<std::string> cpu_features() {
    std::vector<std::string> found;
#if defined(__x86_64__)
    __builtin_cpu_init();
#define FEATURE(name) \
    if (__builtin_cpu_supports(name)) found.push_back(name)
    FEATURE("avx2");
    FEATURE("fma");
    FEATURE("bmi");
    FEATURE("bmi2");
    FEATURE("avx512f");
    FEATURE("avx512bw");
    FEATURE("avx512dq");
    FEATURE("avx512vl");
#undef FEATURE
    for (auto &name : found)
        if (name == "bmi") name = "bmi1";  // as the kernel's /proc/cpuinfo spells it
#elif defined(__aarch64__)
    found.push_back("neon");
#endif
    return found;
}

int max_threads() {
    return ellzero::forked || !ellzero::openmp.parallel ? 1 : ellzero::openmp.max_threads();
}

template <class Function> bool look_up(void *library, const char *name, Function &function) {
    function = reinterpret_cast<Function>(dlsym(library, name));
    return function != nullptr;
}

// Takes the OpenMP runtime in `path`, which stays loaded; with `loaded_only`, only if it is in memory already.
bool attach_openmp(const std::string &path, bool loaded_only) {
    void *library = dlopen(path.c_str(), RTLD_LAZY | RTLD_LOCAL | (loaded_only ? RTLD_NOLOAD : 0));
    if (!library) return false;
    ellzero::OpenMP found;
    bool complete = look_up(library, "GOMP_parallel", found.parallel) &&
                    look_up(library, "omp_get_thread_num", found.thread_num) &&
                    look_up(library, "omp_get_num_threads", found.num_threads) &&
                    look_up(library, "omp_get_max_threads", found.max_threads) &&
                    look_up(library, "omp_in_parallel", found.in_parallel);
    if (complete) ellzero::openmp = found;
    return complete;
}

// Where the runtime in use stands: equal addresses mean one pool. 0 without one.
std::uintptr_t openmp_address() { return reinterpret_cast<std::uintptr_t>(ellzero::openmp.max_threads); }

}  // namespace

void bind_config(nb::module_ &m) {
    pthread_atfork(nullptr, nullptr, [] { ellzero::forked = true; });
    m.def("cpu_features", &cpu_features, "Features that this CPU and its operating system offer, among those used.");
    m.def("max_threads", &max_threads, "Threads a kernel uses when none are asked for.");
    m.def("attach_openmp", &attach_openmp, nb::arg("path"), nb::arg("loaded_only") = false,
          "Use the OpenMP runtime in this file; false if it cannot be. Without one, kernels run on one thread.");
    m.def("openmp_address", &openmp_address, "Address of a function of the OpenMP runtime in use, 0 without one.");
    m.def("run_serial", [] { ellzero::forked = true; }, "From now on every kernel of this module uses one thread.");
}
