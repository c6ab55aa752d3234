// Inverted lists of 8-bit impacts, and their exact top-k. Twin of kernels/impact.py, which describes the format.
//
// Documents stand in windows of 64 blocks. A list is cut at the windows; each cut holds its postings as gaps of one
// byte (a gap of 255 with impact 0 is a step that scores nothing) or, where that is shorter, as 16-bit places. Scores
// of one window are added up in an array that fits in the first level of cache, term by term; then the window is read
// once for what beats the threshold. Pruning never touches single postings: a window is left out as a whole, first by
// the sum of its terms' largest impacts, then by the best of its blocks' sums, which are held in four bits each.
//
// Whatever bytes a damaged file holds, places are 16 bits wide and the array has 2^16 entries.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <vector>

#include "simd.hpp"

namespace ellzero {

constexpr int window_blocks = 64;             // blocks of a window
constexpr int bounds_bytes = 32;              // four bits per block
constexpr std::uint32_t wide_slice = 1u << 31, bounded_slice = 1u << 30, slice_start = bounded_slice - 1;
constexpr int kth_ranks[4] = {1, 10, 100, 1000};
constexpr int data_padding = 64;              // bytes after the last list, so that whole registers may be read
constexpr int least_bounded = 32;             // postings from which a cut carries bounds

struct ImpactLists {
    std::int64_t terms = 0, documents = 0, windows = 0, dense = 0;
    int shift = 6;                                  // log2 of the block
    const std::uint64_t *starts = nullptr;          // [terms + 1] bytes into data
    const std::int32_t *slot = nullptr;             // [terms] row of the directory; -1: a short list
    const std::int32_t *frequency = nullptr;        // [terms] documents of the term
    const std::uint8_t *kth = nullptr;              // [terms, 4] its impacts of ranks 1, 10, 100, 1000; 0: fewer
    const std::uint32_t *directory = nullptr;       // [dense, windows + 1] starts of cuts, in pairs of bytes, with flags
    const std::uint8_t *window_max = nullptr;       // [dense, windows]
    const std::uint8_t *data = nullptr;
    const std::uint32_t *rank = nullptr;            // [documents] place of the document's id among all, ascending

    std::int64_t window() const { return std::int64_t(window_blocks) << shift; }
};

// ---------------------------------------------------------------- making lists

struct EncodedLists {
    std::vector<std::uint8_t> data, kth, window_max;
    std::vector<std::uint64_t> starts;
    std::vector<std::int32_t> slot, frequency;
    std::vector<std::uint32_t> directory;
};

class ListEncoder {
  public:
    ListEncoder(std::int64_t documents, int shift)
        : shift(shift), window(std::int64_t(window_blocks) << shift), windows((documents + window - 1) / window) {}

    // ptr[terms + 1], documents ascending within a term, impacts 1 to 255.
    EncodedLists operator()(const std::int64_t *ptr, const std::uint32_t *docs, const std::uint8_t *impacts,
                            std::int64_t terms) {
        EncodedLists out;
        out.starts.assign(1, 0);
        out.data.reserve(ptr[terms] * 5 / 2 + 4 * terms + data_padding);
        for (std::int64_t t = 0; t < terms; ++t) {
            const std::int64_t count = ptr[t + 1] - ptr[t];
            statistics(impacts + ptr[t], count, out);
            out.frequency.push_back(static_cast<std::int32_t>(count));
            const bool dense = count > windows && encode_dense(docs + ptr[t], impacts + ptr[t], count) &&
                               std::int64_t(bytes.size()) + 5 * windows < 5 * count;
            out.slot.push_back(dense ? static_cast<std::int32_t>(out.window_max.size() / std::max<std::int64_t>(windows, 1)) : -1);
            if (dense) {
                out.data.insert(out.data.end(), bytes.begin(), bytes.end());
                out.directory.insert(out.directory.end(), row.begin(), row.end());
                out.window_max.insert(out.window_max.end(), largest.begin(), largest.end());
            } else {
                append(out.data, docs + ptr[t], count);
                out.data.insert(out.data.end(), impacts + ptr[t], impacts + ptr[t + 1]);
            }
            out.data.resize((out.data.size() + 3) / 4 * 4, 0);
            out.starts.push_back(out.data.size());
        }
        return out;
    }

  private:
    const int shift;
    const std::int64_t window, windows;
    std::vector<std::uint8_t> bytes, gaps, gains, largest;
    std::vector<std::uint32_t> row;
    std::uint8_t top = 0;

    template <class T> static void append(std::vector<std::uint8_t> &to, const T *values, std::int64_t count) {
        const auto *raw = reinterpret_cast<const std::uint8_t *>(values);
        to.insert(to.end(), raw, raw + count * sizeof(T));
    }

    void statistics(const std::uint8_t *impacts, std::int64_t count, EncodedLists &out) {
        std::int64_t of[256] = {};
        for (std::int64_t i = 0; i < count; ++i) ++of[impacts[i]];
        std::int64_t above = 0;
        int value = 256;
        top = 0;
        for (int rank : kth_ranks) {
            while (above < rank && value > 0) above += of[--value];
            const std::uint8_t found = above >= rank ? static_cast<std::uint8_t>(value) : 0;
            out.kth.push_back(found);
            if (rank == 1) top = found;
        }
    }

    // The cuts of one list; false if it is too long for 30 bits of pairs of bytes.
    bool encode_dense(const std::uint32_t *docs, const std::uint8_t *impacts, std::int64_t count) {
        bytes.clear(), row.clear(), largest.clear();
        std::int64_t at = 0;
        for (std::int64_t w = 0; w < windows; ++w) {
            std::int64_t end = at;
            while (end < count && docs[end] < (w + 1) * window) ++end;
            if (bytes.size() / 2 > slice_start) return false;
            row.push_back(static_cast<std::uint32_t>(bytes.size() / 2));
            largest.push_back(end > at ? *std::max_element(impacts + at, impacts + end) : 0);
            cut(docs + at, impacts + at, end - at, static_cast<std::uint32_t>(w * window));
            at = end;
        }
        row.push_back(static_cast<std::uint32_t>(bytes.size() / 2));
        return bytes.size() / 2 <= slice_start;
    }

    void cut(const std::uint32_t *docs, const std::uint8_t *impacts, std::int64_t count, std::uint32_t first) {
        if (count >= least_bounded) {
            row.back() |= bounded_slice;
            bounds(docs, impacts, count, first);
        }
        gaps.clear(), gains.clear();
        std::uint32_t before = first;
        for (std::int64_t i = 0; i < count; ++i) {
            std::uint32_t gap = docs[i] - before;
            for (; gap > 255; gap -= 255) gaps.push_back(255), gains.push_back(0);
            gaps.push_back(static_cast<std::uint8_t>(gap)), gains.push_back(impacts[i]);
            before = docs[i];
        }
        if (2 * std::int64_t(gaps.size()) <= 3 * count) {
            bytes.insert(bytes.end(), gaps.begin(), gaps.end());
            bytes.insert(bytes.end(), gains.begin(), gains.end());
            return;
        }
        row.back() |= wide_slice;
        for (std::int64_t i = 0; i < count; ++i) {
            const std::uint16_t place = static_cast<std::uint16_t>(docs[i] - first);
            append(bytes, &place, 1);
        }
        bytes.insert(bytes.end(), impacts, impacts + count);
        if (count & 1) bytes.push_back(0);
    }

    // Block j of the window: low half of byte j for j < 32, else high half of byte j - 32; in steps of top / 15, up.
    void bounds(const std::uint32_t *docs, const std::uint8_t *impacts, std::int64_t count, std::uint32_t first) {
        std::uint8_t best[window_blocks] = {};
        for (std::int64_t i = 0; i < count; ++i) {
            std::uint8_t &block = best[(docs[i] - first) >> shift];
            block = std::max(block, impacts[i]);
        }
        for (int j = 0; j < bounds_bytes; ++j)
            bytes.push_back(static_cast<std::uint8_t>(level(best[j]) | level(best[j + bounds_bytes]) << 4));
    }

    int level(int impact) const { return (15 * impact + top - 1) / top; }
};

// ---------------------------------------------------------------- reading lists

// Where the postings of one cut lie: `count` pairs (steps included), either gaps or 16-bit places.
struct Cut {
    const std::uint8_t *bounds;  // null: none
    const std::uint8_t *places, *impacts;
    std::int64_t count;
    bool wide;
};

inline Cut find_cut(const std::uint8_t *list, std::uint32_t entry, std::uint32_t next) {
    const std::uint8_t *at = list + 2 * std::int64_t(entry & slice_start);
    std::int64_t pairs = std::int64_t(next & slice_start) - std::int64_t(entry & slice_start);
    Cut cut{nullptr, at, at, 0, (entry & wide_slice) != 0};
    if (pairs > 0 && (entry & bounded_slice)) {
        cut.bounds = at;
        cut.places = at += bounds_bytes;
        pairs -= bounds_bytes / 2;
    }
    cut.count = cut.wide ? 2 * pairs / 3 : pairs;
    cut.impacts = at + (cut.wide ? 2 * cut.count : cut.count);
    return cut;
}

// Calls use(place, impact) for every posting of a cut, and for its steps with impact 0.
template <class Use> inline void each_posting(const Cut &cut, Use use) {
    std::uint16_t place = 0;
    for (std::int64_t i = 0; i < cut.count; ++i) {
        if (cut.wide)
            std::memcpy(&place, cut.places + 2 * i, 2);
        else
            place = static_cast<std::uint16_t>(place + cut.places[i]);
        use(place, cut.impacts[i]);
    }
}

#if defined(__AVX2__)
// 16 gaps -> the places they lead to from `last`, which then repeats the sixteenth.
inline __m256i step_places(__m128i gaps, __m256i &last) {
    __m256i at = _mm256_cvtepu8_epi16(gaps);
    at = _mm256_add_epi16(at, _mm256_slli_si256(at, 2));
    at = _mm256_add_epi16(at, _mm256_slli_si256(at, 4));
    at = _mm256_add_epi16(at, _mm256_slli_si256(at, 8));
    const __m256i top = _mm256_set1_epi16(0x0f0e), half = _mm256_permute2x128_si256(at, at, 0x08);  // low half, moved up
    at = _mm256_add_epi16(_mm256_add_epi16(at, _mm256_shuffle_epi8(half, top)), last);
    last = _mm256_shuffle_epi8(_mm256_permute4x64_epi64(at, 0xff), top);
    return at;
}
#endif

// scores[place] += weight * impact over a cut. A whole register is taken at the end too: what lies behind the cut adds
// nothing to the first 16 places, which are different ones, so that no addition waits for another.
inline void add_cut(const Cut &cut, std::int32_t weight, std::int32_t *scores) {
#if defined(__AVX2__)
    alignas(32) std::int32_t gain[16];
    const __m256i by = _mm256_set1_epi32(weight);
    const __m256i lane = _mm256_setr_epi16(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    __m256i last = _mm256_setzero_si256();
    for (std::int64_t i = 0; i < cut.count; i += 16) {
        __m256i at = cut.wide ? _mm256_loadu_si256(reinterpret_cast<const __m256i *>(cut.places + 2 * i))
                              : step_places(_mm_loadu_si128(reinterpret_cast<const __m128i *>(cut.places + i)), last);
        __m128i impact = _mm_loadu_si128(reinterpret_cast<const __m128i *>(cut.impacts + i));
        if (cut.count - i < 16) {
            const __m256i within = _mm256_cmpgt_epi16(_mm256_set1_epi16(static_cast<short>(cut.count - i)), lane);
            at = _mm256_blendv_epi8(lane, at, within);
            const __m256i bytes = _mm256_packs_epi16(within, within);
            impact = _mm_and_si128(impact, _mm_unpacklo_epi64(_mm256_castsi256_si128(bytes), _mm256_extracti128_si256(bytes, 1)));
        }
        const __m256i low = _mm256_madd_epi16(_mm256_cvtepu8_epi32(impact), by);
        const __m256i high = _mm256_madd_epi16(_mm256_cvtepu8_epi32(_mm_srli_si128(impact, 8)), by);
        _mm256_store_si256(reinterpret_cast<__m256i *>(gain), low);
        _mm256_store_si256(reinterpret_cast<__m256i *>(gain + 8), high);
        // Places leave the register in words of four: fewer loads than one for each.
        const __m128i lower = _mm256_castsi256_si128(at), upper = _mm256_extracti128_si256(at, 1);
        const std::int64_t words[4] = {_mm_cvtsi128_si64(lower), _mm_extract_epi64(lower, 1), _mm_cvtsi128_si64(upper),
                                       _mm_extract_epi64(upper, 1)};
#pragma GCC unroll 4
        for (int q = 0; q < 4; ++q) {
            const std::uint64_t four = static_cast<std::uint64_t>(words[q]);
            scores[four & 0xffff] += gain[4 * q];
            scores[four >> 16 & 0xffff] += gain[4 * q + 1];
            scores[four >> 32 & 0xffff] += gain[4 * q + 2];
            scores[four >> 48] += gain[4 * q + 3];
        }
    }
#else
    each_posting(cut, [&](std::uint16_t place, std::uint8_t impact) { scores[place] += weight * impact; });
#endif
}

// One list of a query: a dense one with its cuts, or a short one with whole document numbers.
struct QueryTerm {
    std::int32_t weight;
    std::int64_t count;
    const std::uint8_t *list;
    const std::uint32_t *row;         // null: a short list
    const std::uint8_t *largest;
    const std::uint8_t *kth;          // its impacts of ranks 1, 10, 100, 1000
    float step;                       // scaled weight, see WindowBounds
    alignas(16) std::uint8_t low[16], high[16];  // the scaled values of the 16 levels, by bytes

    std::uint32_t document(std::int64_t i) const {
        std::uint32_t found;
        std::memcpy(&found, list + 4 * i, 4);
        return found;
    }
    std::uint8_t impact(std::int64_t i) const { return list[4 * count + i]; }

    // The first of a short list's postings at `document` or after.
    std::int64_t lower_bound(std::uint64_t from) const {
        std::int64_t low = 0, high = count;
        while (low < high) {
            const std::int64_t middle = (low + high) / 2;
            if (document(middle) < from) low = middle + 1;
            else high = middle;
        }
        return low;
    }
};

inline std::vector<QueryTerm> query_terms(const ImpactLists &x, const std::int32_t *terms, const std::int32_t *weights,
                                          std::int64_t count) {
    std::vector<QueryTerm> found;
    found.reserve(count);
    for (std::int64_t i = 0; i < count; ++i) {
        const std::int64_t t = terms[i];
        if (weights[i] <= 0 || x.frequency[t] == 0) continue;
        QueryTerm q{};
        q.weight = weights[i];
        q.count = x.frequency[t];
        q.list = x.data + x.starts[t];
        q.kth = x.kth + 4 * t;
        if (x.slot[t] >= 0) {
            q.row = x.directory + x.slot[t] * (x.windows + 1);
            q.largest = x.window_max + x.slot[t] * x.windows;
        }
        found.push_back(q);
    }
    return found;
}

// ---------------------------------------------------------------- the k best so far

// Keys are unique and ordered as hits are: score descending, then place of the id ascending.
class Best {
  public:
    std::int32_t least = 1;  // scores from here on may enter

    void start(std::int64_t wanted, std::int32_t from) {
        k = wanted;
        least = std::max(from, 1);
        floor = (std::uint64_t(least) << 32) - 1;
        room = 2 * k + 64;
        keys.clear();
        keys.reserve(room);
    }
    void offer(std::int32_t score, std::uint32_t rank) {
        const std::uint64_t key = std::uint64_t(std::uint32_t(score)) << 32 | (0xffffffffu - rank);
        if (key <= floor) return;
        keys.push_back(key);
        if (std::int64_t(keys.size()) == room) cut();
    }
    // Raises the threshold after a window, where that is worth its cost.
    void settle() {
        if (std::int64_t(keys.size()) >= k + k / 4) cut();
    }
    std::int64_t finish(std::int32_t *scores, std::int64_t *ranks) {
        cut();
        std::sort(keys.begin(), keys.end(), std::greater<std::uint64_t>());
        for (std::size_t i = 0; i < keys.size(); ++i) {
            scores[i] = static_cast<std::int32_t>(keys[i] >> 32);
            ranks[i] = 0xffffffffu - static_cast<std::uint32_t>(keys[i]);
        }
        return keys.size();
    }

  private:
    std::int64_t k = 0, room = 0;
    std::uint64_t floor = 0;
    std::vector<std::uint64_t> keys;

    void cut() {
        if (std::int64_t(keys.size()) < k) return;
        std::nth_element(keys.begin(), keys.begin() + (k - 1), keys.end(), std::greater<std::uint64_t>());
        keys.resize(k);
        if (keys[k - 1] > floor) floor = keys[k - 1];
        least = std::max<std::int32_t>(least, static_cast<std::int32_t>(keys[k - 1] >> 32));
    }
};

// ---------------------------------------------------------------- search

struct SearchCounts {
    std::int64_t scored = 0, left_by_window = 0, left_by_block = 0, postings = 0;
};

class ImpactSearch {
  public:
    explicit ImpactSearch(const ImpactLists &x) : x(x), scores(1 << 16, 0), bound(x.windows), order(x.windows) {}

    // The k best of one query. `allowed` [documents] or null; `open` says which windows hold an allowed document.
    std::int64_t operator()(const std::int32_t *terms, const std::int32_t *weights, std::int64_t count, std::int64_t k,
                            bool prune, double alpha, const std::uint8_t *allowed, const std::uint8_t *open,
                            std::int32_t *found, std::int64_t *ranks, SearchCounts &counts) {
        query = query_terms(x, terms, weights, count);
        best.start(k, allowed ? 0 : known_threshold(k));
        if (query.empty() || k == 0) return 0;
        arrange(open);
        if (prune) scale_bounds();
        std::int64_t tried = 0, left = 0;
        for (std::size_t i = 0; i < order.size(); ++i) {
            const std::int64_t w = order[i];
            if (prune && bound[w] * alpha < best.least) {
                counts.left_by_window += order.size() - i;
                break;
            }
            // Bounds of blocks are asked as long as they leave out one window in sixteen.
            if (prune && 16 * (left + 2) >= tried) {
                ++tried;
                const double needed = (std::floor(best.least * scale) - 1) / alpha;
                if (block_bound(w, needed) < needed) {
                    ++left, ++counts.left_by_block;
                    continue;
                }
            }
            score_window(w, i + 1 < order.size() ? order[i + 1] : -1, counts);
            collect(w, allowed);
            best.settle();
            ++counts.scored;
        }
        return best.finish(found, ranks);
    }

  private:
    const ImpactLists x;
    std::vector<std::int32_t> scores;
    std::vector<std::int32_t> bound;
    std::vector<std::int32_t> order;
    std::vector<QueryTerm> query;
    Best best;
    double scale = 0;

    // k documents reach at least this much from one term alone.
    std::int32_t known_threshold(std::int64_t k) const {
        int column = 0;
        while (column < 4 && kth_ranks[column] < k) ++column;
        std::int32_t threshold = 0;
        if (column < 4)
            for (const QueryTerm &q : query) threshold = std::max(threshold, q.weight * q.kth[column]);
        return threshold;
    }

    // Windows that may hold a hit, the most promising first.
    void arrange(const std::uint8_t *open) {
        std::fill(bound.begin(), bound.end(), 0);
        for (const QueryTerm &q : query) {
            if (q.row) {
                for (std::int64_t w = 0; w < x.windows; ++w) bound[w] += q.weight * q.largest[w];
                continue;
            }
            const int shift = x.shift + 6;
            for (std::int64_t i = 0; i < q.count;) {
                const std::uint32_t w = q.document(i) >> shift;
                std::int32_t largest = 0;
                for (; i < q.count && q.document(i) >> shift == w; ++i) largest = std::max<std::int32_t>(largest, q.impact(i));
                if (w < x.windows) bound[w] += q.weight * largest;
            }
        }
        order.clear();
        for (std::int64_t w = 0; w < x.windows; ++w)
            if (bound[w] >= best.least && (!open || open[w])) order.push_back(static_cast<std::int32_t>(w));
        std::sort(order.begin(), order.end(),
                  [&](std::int32_t a, std::int32_t b) { return bound[a] > bound[b] || (bound[a] == bound[b] && a < b); });
    }

    void score_window(std::int64_t w, std::int64_t next, SearchCounts &counts) {
        const std::uint64_t from = std::uint64_t(w) * x.window();
        for (const QueryTerm &q : query) {
            if (q.row) {
                if (next >= 0) fetch(q, next);
                const Cut cut = find_cut(q.list, q.row[w], q.row[w + 1]);
                counts.postings += cut.count;
                add_cut(cut, q.weight, scores.data());
                continue;
            }
            for (std::int64_t i = q.lower_bound(from); i < q.count; ++i, ++counts.postings) {
                const std::uint64_t place = q.document(i) - from;
                if (place >= std::uint64_t(x.window())) break;
                scores[place] += q.weight * q.impact(i);
            }
        }
    }

    static void fetch(const QueryTerm &q, std::int64_t w) {
        const std::uint8_t *at = q.list + 2 * std::int64_t(q.row[w] & slice_start);
        const std::uint8_t *end = q.list + 2 * std::int64_t(q.row[w + 1] & slice_start);
        for (int line = 0; line < 12 && at < end; ++line, at += 64) __builtin_prefetch(at, 0, 2);
    }

    // Offers what reaches the threshold, and clears the scores.
    void collect(std::int64_t w, const std::uint8_t *allowed) {
        const std::int64_t first = w * x.window(), count = std::min(x.window(), x.documents - first);
        auto offer = [&](std::int64_t place) {
            if (!allowed || allowed[first + place]) best.offer(scores[place], x.rank[first + place]);
        };
        std::int64_t i = 0;
#if defined(__AVX2__)
        for (; i + 32 <= count; i += 32) {
            const __m256i under = _mm256_set1_epi32(best.least - 1);
            __m256i *at = reinterpret_cast<__m256i *>(scores.data() + i);
            __m256i hit[4];
            for (int j = 0; j < 4; ++j) hit[j] = _mm256_cmpgt_epi32(_mm256_loadu_si256(at + j), under);
            const __m256i any = _mm256_or_si256(_mm256_or_si256(hit[0], hit[1]), _mm256_or_si256(hit[2], hit[3]));
            if (!_mm256_testz_si256(any, any))
                for (int j = 0; j < 4; ++j) {
                    unsigned bits = _mm256_movemask_ps(_mm256_castsi256_ps(hit[j]));
                    for (; bits; bits &= bits - 1) offer(i + 8 * j + __builtin_ctz(bits));
                }
            for (int j = 0; j < 4; ++j) _mm256_storeu_si256(at + j, _mm256_setzero_si256());
        }
#endif
        for (; i < count; ++i) {
            if (scores[i] >= best.least) offer(i);
            scores[i] = 0;
        }
    }

    // Bounds of blocks are sums of 16 bits in units of 1 / scale, each part rounded up: the largest sum just fits.
    void scale_bounds() {
        double total = 1;
        for (const QueryTerm &q : query) total += double(q.weight) * q.kth[0];
        scale = std::min(1.0, (65000.0 - 2 * query.size()) / total);
        if (scale <= 0) scale = 0;
        for (QueryTerm &q : query) {
            q.step = static_cast<float>(q.weight * scale);
            const double top = q.kth[0];
            for (int level = 0; level < 16; ++level) {
                const int value = level == 0 ? 0 : static_cast<int>(q.weight * scale * (top * level / 15)) + 1;
                q.low[level] = static_cast<std::uint8_t>(value);
                q.high[level] = static_cast<std::uint8_t>(value >> 8);
            }
        }
    }

    // At least the largest of the window's sums of block bounds, as precise as it takes to tell whether it is `needed`.
    std::int32_t block_bound(std::int64_t w, double needed) {
        alignas(32) std::uint16_t sum[window_blocks] = {};
        const std::uint64_t from = std::uint64_t(w) * x.window();
        auto add = [&](const QueryTerm &q, std::uint32_t place, std::uint8_t impact) {
            if (!impact) return;
            std::uint16_t &into = sum[seat(place >> x.shift & (window_blocks - 1))];
            into = static_cast<std::uint16_t>(std::min(65535, into + scaled(q, impact)));
        };
        bounded.clear(), loose.clear();
        std::int32_t rest = 0;  // what the cuts without bounds add at most
        for (const QueryTerm &q : query) {
            if (!q.row) {
                for (std::int64_t i = q.lower_bound(from); i < q.count && q.document(i) - from < std::uint64_t(x.window()); ++i)
                    add(q, static_cast<std::uint32_t>(q.document(i) - from), q.impact(i));
                continue;
            }
            const Cut cut = find_cut(q.list, q.row[w], q.row[w + 1]);
            if (cut.bounds) {
                bounded.push_back({&q, cut.bounds});
            } else if (cut.count) {
                loose.push_back({&q, cut});
                rest += scaled(q, q.largest[w]);
            }
        }
        add_bounds(sum);
        const std::int32_t least = largest_sum(sum);
        if (least >= needed || least + rest < needed) return least + rest;
        for (const Loose &l : loose)
            each_posting(l.cut, [&](std::uint16_t place, std::uint8_t impact) { add(*l.term, place, impact); });
        return largest_sum(sum);
    }

    static int scaled(const QueryTerm &q, std::uint8_t impact) { return static_cast<int>(q.step * impact * 1.000001f) + 1; }

    struct Loose {
        const QueryTerm *term;
        Cut cut;
    };
    std::vector<Loose> loose;

    struct Bounded {
        const QueryTerm *term;
        const std::uint8_t *levels;
    };
    std::vector<Bounded> bounded;

    // Where block j's sum stands: registers are interleaved within their halves.
    static int seat(int j) {
#if defined(__AVX2__)
        return (j & 39) | (j & 8) << 1 | (j & 16) >> 1;
#else
        return j;
#endif
    }

    void add_bounds(std::uint16_t *sum) const {
#if defined(__AVX2__)
        __m256i s[4];
        for (int j = 0; j < 4; ++j) s[j] = _mm256_load_si256(reinterpret_cast<const __m256i *>(sum) + j);
        const __m256i nibble = _mm256_set1_epi8(15);
        for (const Bounded &b : bounded) {
            const __m256i low = _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i *>(b.term->low)));
            const __m256i high = _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i *>(b.term->high)));
            const __m256i levels = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(b.levels));
            for (int half = 0; half < 2; ++half) {
                const __m256i at = _mm256_and_si256(half ? _mm256_srli_epi16(levels, 4) : levels, nibble);
                const __m256i l = _mm256_shuffle_epi8(low, at), h = _mm256_shuffle_epi8(high, at);
                s[2 * half] = _mm256_adds_epu16(s[2 * half], _mm256_unpacklo_epi8(l, h));
                s[2 * half + 1] = _mm256_adds_epu16(s[2 * half + 1], _mm256_unpackhi_epi8(l, h));
            }
        }
        for (int j = 0; j < 4; ++j) _mm256_store_si256(reinterpret_cast<__m256i *>(sum) + j, s[j]);
#else
        for (const Bounded &b : bounded)
            for (int j = 0; j < window_blocks; ++j) {
                const int level = j < bounds_bytes ? b.levels[j] & 15 : b.levels[j - bounds_bytes] >> 4;
                sum[j] = static_cast<std::uint16_t>(std::min(65535, sum[j] + b.term->low[level] + (b.term->high[level] << 8)));
            }
#endif
    }

    static std::int32_t largest_sum(const std::uint16_t *sum) {
        std::uint16_t largest = 0;
        for (int j = 0; j < window_blocks; ++j) largest = std::max(largest, sum[j]);
        return largest;
    }
};

}  // namespace ellzero
