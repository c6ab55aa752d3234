// ImpactLists, impact_encode, impact_decode, impact_search: see impact_lists.hpp and impact_index.hpp.
#include <atomic>
#include <mutex>
#include <string>

#include "arrays.hpp"
#include "impact_index.hpp"
#include "threads.hpp"

namespace nb = nanobind;
using namespace ellzero;

namespace ellzero {
template <> inline const char *dtype_name<std::uint8_t>() { return "uint8"; }
template <> inline const char *dtype_name<std::uint32_t>() { return "uint32"; }
template <> inline const char *dtype_name<std::uint64_t>() { return "uint64"; }
}  // namespace ellzero

namespace {

// The arrays in place (a memory map stays one), checked once so that no search leaves them.
struct HeldLists {
    Array<const std::uint64_t, 1> starts;
    Array<const std::uint8_t, 1> form, data;
    Array<const std::int32_t, 1> frequency;
    Array<const std::uint8_t, 2> kth;
    Array<const std::uint32_t, 1> rank;
    ImpactLists lists;
};

void check_lists(const ImpactLists &x, std::uint64_t size) {
    want(size >= std::uint64_t(data_padding), "data: want padding at its end");
    want(x.starts[0] == 0 && x.starts[x.terms] + data_padding <= size, "starts: want places within data");
    for (std::int64_t t = 0; t < x.terms; ++t) {
        want(x.starts[t] <= x.starts[t + 1] && x.starts[t + 1] <= x.starts[x.terms], "starts: want it to rise");
        const std::uint64_t bytes = x.starts[t + 1] - x.starts[t];
        want(x.frequency[t] >= 0 && x.frequency[t] <= x.documents, "frequency: want at most the documents");
        const int form = x.form[t];
        want(form == 0 || form == 1 || form == 2 || form == 4, "form: want 0, 1, 2 or 4");
        if (!form) {
            want(5 * std::uint64_t(x.frequency[t]) <= bytes, "starts: want room for a short list");
            continue;
        }
        std::uint64_t used = std::uint64_t(x.windows) * (1 + form);
        want(used <= bytes, "starts: want room for the sizes of a list");
        bool fits = true;
        each_size(x, t, [&](std::uint32_t size) {
            fits &= size >> 1 <= 2 * x.window() + 1;
            used += cut_bytes(size, x.shift);
        });
        want(fits && used <= bytes && used < std::uint64_t(1) << 32, "data: want the cuts of a list within its bytes");
    }
    for (std::int64_t d = 0; d < x.documents; ++d) want(x.rank[d] < x.documents, "rank: want places of documents");
}

void make(HeldLists *self, std::int64_t documents, int shift, nb::handle starts, nb::handle form, nb::handle frequency,
          nb::handle kth, nb::handle data, nb::handle rank) {
    HeldLists made;
    made.starts = take<const std::uint64_t, 1>(starts, "starts");
    made.form = take<const std::uint8_t, 1>(form, "form");
    made.frequency = take<const std::int32_t, 1>(frequency, "frequency");
    made.kth = take<const std::uint8_t, 2>(kth, "kth");
    made.data = take<const std::uint8_t, 1>(data, "data");
    made.rank = take<const std::uint32_t, 1>(rank, "rank");
    want(shift >= 0 && shift <= 10, "shift: want blocks of 1 to 1024 documents");
    want(documents >= 0 && documents < (std::int64_t(1) << 31), "documents: want fewer than 2^31");
    ImpactLists &x = made.lists;
    x.documents = documents, x.shift = shift;
    x.terms = made.form.shape(0);
    x.windows = (documents + x.window() - 1) / x.window();
    want(std::int64_t(made.starts.shape(0)) == x.terms + 1, "starts: want one more than terms");
    want(std::int64_t(made.frequency.shape(0)) == x.terms, "frequency: want one per term");
    want(std::int64_t(made.kth.shape(0)) == x.terms && made.kth.shape(1) == 4, "kth: want [terms, 4]");
    want(std::int64_t(made.rank.shape(0)) == documents, "rank: want one per document");
    x.starts = made.starts.data(), x.form = made.form.data(), x.frequency = made.frequency.data();
    x.kth = made.kth.data(), x.data = made.data.data(), x.rank = made.rank.data();
    check_lists(x, made.data.shape(0));
    new (self) HeldLists(std::move(made));
}

template <class T> nb::object given(std::vector<T> &&values, std::vector<std::size_t> shape) {
    auto *kept = new std::vector<T>(std::move(values));
    nb::capsule owner(kept, [](void *p) noexcept { delete static_cast<std::vector<T> *>(p); });
    return nb::cast(nb::ndarray<nb::numpy, T>(kept->data(), shape.size(), shape.data(), owner));
}
template <class T> nb::object given(std::vector<T> &&values) {
    const std::size_t size = values.size();
    return given(std::move(values), {size});
}

nb::tuple encode(nb::handle ptr_, nb::handle docs_, nb::handle impacts_, std::int64_t documents, int shift) {
    auto ptr = take<const std::int64_t, 1>(ptr_, "ptr");
    auto docs = take<const std::uint32_t, 1>(docs_, "docs");
    auto impacts = take<const std::uint8_t, 1>(impacts_, "impacts");
    const std::int64_t terms = std::int64_t(ptr.shape(0)) - 1, postings = docs.shape(0);
    want(shift >= 0 && shift <= 10, "shift: want blocks of 1 to 1024 documents");
    want(documents >= 0 && documents < (std::int64_t(1) << 31), "documents: want fewer than 2^31");
    want(terms >= 0 && ptr(0) == 0 && ptr(terms) == postings && std::int64_t(impacts.shape(0)) == postings,
         "ptr: want it to run from 0 to the number of postings");
    EncodedLists made;
    {
        nb::gil_scoped_release unlocked;
        for (std::int64_t t = 0; t < terms; ++t) {
            want(ptr(t) <= ptr(t + 1), "ptr: want it to rise");
            for (std::int64_t i = ptr(t); i < ptr(t + 1); ++i)
                want(docs(i) < documents && impacts(i) > 0 && (i == ptr(t) || docs(i - 1) < docs(i)),
                     "docs: want documents that rise within a term, and impacts from 1 to 255");
        }
        made = ListEncoder(documents, shift)(ptr.data(), docs.data(), impacts.data(), terms);
    }
    const std::size_t n = terms;
    return nb::make_tuple(given(std::move(made.starts)), given(std::move(made.form)), given(std::move(made.frequency)),
                          given(std::move(made.kth), {n, 4}), given(std::move(made.data)));
}

nb::tuple decode(const HeldLists &held, std::int64_t from, std::int64_t to) {
    const ImpactLists &x = held.lists;
    want(0 <= from && from <= to && to <= x.terms, "from: want terms");
    std::vector<std::int64_t> ptr(1, 0);
    std::vector<std::uint32_t> docs;
    std::vector<std::uint8_t> impacts;
    {
        nb::gil_scoped_release unlocked;
        for (std::int64_t t = from; t < to; ++t) {
            const std::uint8_t *list = x.data + x.starts[t];
            if (!x.form[t]) {
                const std::int64_t count = x.frequency[t];
                docs.resize(docs.size() + count);
                if (count) std::memcpy(docs.data() + docs.size() - count, list, 4 * count);
                impacts.insert(impacts.end(), list + 4 * count, list + 5 * count);
            } else {
                const std::uint8_t *at = list + x.windows * (1 + x.form[t]);
                std::int64_t first = 0;
                each_size(x, t, [&](std::uint32_t size) {
                    each_posting(find_cut(at, size, x.shift), [&](std::uint16_t place, std::uint8_t impact) {
                        if (!impact) return;
                        docs.push_back(static_cast<std::uint32_t>(first + place));
                        impacts.push_back(impact);
                    });
                    at += cut_bytes(size, x.shift), first += x.window();
                });
            }
            ptr.push_back(docs.size());
        }
    }
    return nb::make_tuple(given(std::move(ptr)), given(std::move(docs)), given(std::move(impacts)));
}

void search(const HeldLists &held, nb::handle ptr_, nb::handle terms_, nb::handle weights_, std::int64_t k, bool prune,
            double alpha, nb::handle allowed_, nb::handle scores_, nb::handle ranks_, nb::handle found_,
            nb::handle counts_, int n_threads) {
    const ImpactLists &x = held.lists;
    auto ptr = take<const std::int64_t, 1>(ptr_, "ptr");
    auto terms = take<const std::int32_t, 1>(terms_, "terms");
    auto weights = take<const std::int32_t, 1>(weights_, "weights");
    auto scores = take<std::int32_t, 2>(scores_, "scores");
    auto ranks = take<std::int64_t, 2>(ranks_, "ranks");
    auto found = take<std::int64_t, 1>(found_, "found");
    auto counts = take<std::int64_t, 2>(counts_, "counts");
    const std::int64_t queries = std::int64_t(ptr.shape(0)) - 1, entries = terms.shape(0);
    want(queries >= 0 && ptr(0) == 0 && ptr(queries) == entries && std::int64_t(weights.shape(0)) == entries,
         "ptr: want it to run from 0 to the number of terms");
    auto shaped = [&](const auto &a, std::int64_t width) {
        return std::int64_t(a.shape(0)) == queries && std::int64_t(a.shape(1)) == width;
    };
    want(shaped(scores, k) && shaped(ranks, k) && shaped(counts, 4) && std::int64_t(found.shape(0)) == queries,
         "scores: want [queries, k], and found and counts to match");
    std::int64_t work = 0;
    for (std::int64_t q = 0; q < queries; ++q) {
        want(ptr(q) <= ptr(q + 1), "ptr: want it to rise");
        std::int64_t most = 0;
        for (std::int64_t i = ptr(q); i < ptr(q + 1); ++i) {
            want(terms(i) >= 0 && terms(i) < x.terms, "terms: want terms of the index");
            want(weights(i) >= 0 && weights(i) <= 32767, "weights: want 0 to 32767");
            most += 255 * std::int64_t(weights(i));
            work += x.frequency[terms(i)];
        }
        want(most < (std::int64_t(1) << 31), "weights: their sum may make a score of more than 31 bits");
    }
    Array<const std::uint8_t, 1> mask;
    if (!allowed_.is_none()) {
        mask = take<const std::uint8_t, 1>(allowed_, "allowed");
        want(std::int64_t(mask.shape(0)) == x.documents, "allowed: want one per document");
    }
    const std::uint8_t *allowed = allowed_.is_none() ? nullptr : mask.data();
    nb::gil_scoped_release unlocked;
    std::vector<std::uint8_t> open;
    if (allowed)
        for (std::int64_t d = 0; d < x.documents; d += x.window()) {
            const std::int64_t end = std::min(x.documents, d + x.window());
            open.push_back(std::any_of(allowed + d, allowed + end, [](std::uint8_t a) { return a != 0; }));
        }
    const int threads = static_cast<int>(std::min<std::int64_t>(queries, threads_for(work, n_threads)));
    std::atomic<std::int64_t> next{0};
    in_parts(threads, threads, [&](std::int64_t, std::int64_t) {
        ImpactSearch one(x);
        for (std::int64_t q; (q = next++) < queries;) {
            SearchCounts done;
            found.data()[q] = one(terms.data() + ptr(q), weights.data() + ptr(q), ptr(q + 1) - ptr(q), k, prune, alpha,
                                  allowed, allowed ? open.data() : nullptr, scores.data() + q * k, ranks.data() + q * k,
                                  done);
            const std::int64_t row[4] = {done.scored, done.left_by_window, done.left_by_block, done.postings};
            std::copy(row, row + 4, counts.data() + 4 * q);
        }
    });
}

}  // namespace

void bind_impact_index(nb::module_ &m) {
    nb::class_<HeldLists>(m, "ImpactLists", "Inverted lists of 8-bit impacts; checked once, then fixed.")
        .def("__init__", &make, nb::arg("documents"), nb::arg("shift"), nb::arg("starts"), nb::arg("form"),
             nb::arg("frequency"), nb::arg("kth"), nb::arg("data"), nb::arg("rank"));
    m.def("impact_encode", &encode, nb::arg("ptr"), nb::arg("docs"), nb::arg("impacts"), nb::arg("documents"),
          nb::arg("shift"), "Lists of the terms' postings: starts, form, frequency, kth, data.");
    m.def("impact_decode", &decode, nb::arg("lists"), nb::arg("first"), nb::arg("stop"),
          "The postings of some terms: ptr, docs, impacts.");
    m.def("impact_search", &search, nb::arg("lists"), nb::arg("ptr"), nb::arg("terms"), nb::arg("weights"), nb::arg("k"),
          nb::arg("prune"), nb::arg("alpha"), nb::arg("allowed").none(), nb::arg("scores"), nb::arg("ranks"),
          nb::arg("found"), nb::arg("counts"), nb::arg("n_threads") = 0,
          "The k best documents of each query, by score descending and place of the id ascending.");
}
