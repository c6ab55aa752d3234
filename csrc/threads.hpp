// Threads of every kernel: one thread for small work, after a fork and where there is no OpenMP, else OpenMP's pool.
//
// The runtime is not linked but looked up when the module is attached to it (kernels/_dispatch.py): so the modules
// use the libgomp that torch uses, a wheel carries none of its own, and a machine without any still runs. A second
// pool would compete with torch's for the same cores.
#pragma once

#include <algorithm>
#include <cstdint>
#include <exception>
#include <mutex>

namespace ellzero {

// The entry points of GCC's OpenMP ABI (stable since GCC 4.9; LLVM's runtime has them too); null when not attached.
struct OpenMP {
    void (*parallel)(void (*part)(void *), void *data, unsigned threads, unsigned flags) = nullptr;
    int (*thread_num)() = nullptr;
    int (*num_threads)() = nullptr;
    int (*max_threads)() = nullptr;
    int (*in_parallel)() = nullptr;
};
extern OpenMP openmp;

// Set in a forked child (bind_config.cpp): the pool's threads did not survive the fork, and entering it would hang.
extern bool forked;

// Threads for `work` scalar operations. `asked` <= 0 means all that OpenMP offers; work below `grain` per thread is
// not worth waking one.
inline int threads_for(std::int64_t work, int asked, std::int64_t grain = 1 << 16) {
    if (forked || !openmp.parallel || openmp.in_parallel()) return 1;
    int most = asked > 0 ? asked : openmp.max_threads();
    return static_cast<int>(std::clamp<std::int64_t>(work / grain, 1, std::max(most, 1)));
}

// Runs `run(from, to)` over [0, n) in `threads` contiguous parts. One thread never enters OpenMP. An exception of any
// part is raised again here.
template <class Run> void in_parts(std::int64_t n, int threads, Run run) {
    if (threads <= 1) return run(std::int64_t(0), n);
    struct Job {
        Run &run;
        std::int64_t n;
        std::exception_ptr failure;
        std::mutex lock;
    } job{run, n, nullptr, {}};
    openmp.parallel(
        [](void *data) {
            Job &job = *static_cast<Job *>(data);
            std::int64_t part = openmp.thread_num(), parts = openmp.num_threads();
            try {
                job.run(job.n * part / parts, job.n * (part + 1) / parts);
            } catch (...) {
                std::lock_guard<std::mutex> guard(job.lock);
                job.failure = std::current_exception();
            }
        },
        &job, static_cast<unsigned>(threads), 0);
    if (job.failure) std::rethrow_exception(job.failure);
}

}  // namespace ellzero
