// Model steps of many problems at once: each minimises its own quadratic model with an L1 term, in Gram space.
//
// Problem: over w on the columns J of a metric (positions in the rows of `w`),
//     g'(w - w0) + (w - w0)' H (w - w0) / 2 + l2 |w|^2 / 2 + l1 |w|_1,
// H a Gram block in float32, all else in double. The metric shapes the step, not where it ends: outer steps
// start from exact gradients, so single precision costs no accuracy, and the moves that it stores are small beside w.
//
// With the inverse M of H + l2 I the same model is solved from its dual: w = w0 - M (g + q), q in l1 * d|w|, by
// coordinate descent on the box |q_j| <= l1. There only columns that rest at zero move, usually far fewer than those
// in use, and their problem is the better conditioned one.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

namespace ellzero::bundle {

struct Metric {
    const float *gram;              // [size, size] in rows of `stride`; the intercept is solved out
    const float *inverse;           // [size, size] in rows of `stride`, or null
    const std::int64_t *columns;    // [size] positions in a row of w
    const double *tilt;             // [size] X_J' h: how the intercept's slope moves with w
    double mass;                    // sum of h; 0 where there is no intercept
    std::int64_t size, stride;
};

struct Options {
    double accuracy;  // how far the distance to stationarity of the model falls
    std::int64_t max_sweeps;
};

class Step {
  public:
    // own: [columns of w] which of them this problem uses. Returns sweeps.
    // scale: the curvature of this problem in units of the metric's.
    std::int64_t run(const Metric &metric, const bool *own, const double *gradient, double gradient0, double scale,
                     double l1, double l2, const Options &options, double *w, double *intercept) {
        scale_ = scale;
        choose(metric, own, w);
        const std::int64_t size = std::int64_t(picks_.size());
        if (size == 0) {
            if (metric.mass > 0) *intercept -= gradient0 / (scale * metric.mass);
            return 0;
        }
        w_.resize(size), start_.resize(size), slope_.resize(size), moved_.assign(size, 0.0f);
        const double lean = metric.mass > 0 ? gradient0 / metric.mass : 0.0;
        double distance = 0;
        for (std::int64_t k = 0; k < size; ++k) {
            const std::int64_t column = metric.columns[picks_[k]];
            const double x = start_[k] = w_[k] = w[column];
            const double slope = slope_[k] = gradient[column] + l2 * x - metric.tilt[picks_[k]] * lean;
            const double far = x != 0 ? std::abs(slope + std::copysign(l1, x)) : std::abs(slope) - l1;
            distance = std::max(distance, far);
        }
        const double tol = options.accuracy * distance;
        const bool whole = size == metric.size;
        std::int64_t sweeps = 0;  // none where only the intercept moves
        if (distance > 0)
            sweeps = whole && metric.inverse ? box(metric, l1, tol, options.max_sweeps)
                                             : descend(metric, whole, l1, l2, tol, options.max_sweeps);
        double tilted = gradient0;
        for (std::int64_t k = 0; k < size; ++k) {
            tilted += scale * metric.tilt[picks_[k]] * (w_[k] - start_[k]);
            w[metric.columns[picks_[k]]] = w_[k];
        }
        if (metric.mass > 0) *intercept -= tilted / (scale * metric.mass);
        return sweeps;
    }

  private:
    // The positions in the metric that this problem uses: its own, or all where most are its own.
    void choose(const Metric &metric, const bool *own, const double *w) {
        picks_.clear();
        for (std::int64_t k = 0; k < metric.size; ++k)
            if (own[metric.columns[k]] || w[metric.columns[k]] != 0) picks_.push_back(k);
        if (10 * std::int64_t(picks_.size()) >= 7 * metric.size) {
            picks_.resize(metric.size);
            for (std::int64_t k = 0; k < metric.size; ++k) picks_[k] = k;
        }
    }

    std::int64_t descend(const Metric &metric, bool whole, double l1, double l2, double tol, std::int64_t max_sweeps) {
        const std::int64_t size = std::int64_t(picks_.size());
        const float *gram = metric.gram;
        std::int64_t stride = metric.stride;
        if (!whole) {
            block_.resize(size * size);
            for (std::int64_t i = 0; i < size; ++i)
                for (std::int64_t j = 0; j < size; ++j)
                    block_[i * size + j] = metric.gram[picks_[i] * metric.stride + picks_[j]];
            gram = block_.data();
            stride = size;
        }
        auto update = [&](std::int64_t j) {
            const double curvature = scale_ * double(gram[j * stride + j]) + l2;
            if (!(curvature > 0)) return 0.0;
            // moved_ is H (w - start): the part of l2 in the model's slope is added here.
            const double slope = slope_[j] + double(moved_[j]) + l2 * (w_[j] - start_[j]);
            const double target = w_[j] * curvature - slope;
            const double now = target > l1 ? (target - l1) / curvature : target < -l1 ? (target + l1) / curvature : 0.0;
            const double step = now - w_[j];
            if (step == 0) return 0.0;
            w_[j] = now;
            add(float(scale_ * step), gram + j * stride, size);
            return std::abs(step) * curvature;
        };
        std::int64_t sweeps = 0;
        while (sweeps < max_sweeps) {
            double change = 0;
            for (std::int64_t j = 0; j < size; ++j) change = std::max(change, update(j));
            ++sweeps;
            if (!(change > tol)) break;
            support_.clear();
            for (std::int64_t j = 0; j < size; ++j)
                if (w_[j] != 0) support_.push_back(j);
            for (change = 2 * tol; change > tol && sweeps < max_sweeps; ++sweeps) {
                change = 0;
                for (std::int64_t j : support_) change = std::max(change, update(j));
            }
        }
        return sweeps;
    }

    std::int64_t box(const Metric &metric, double l1, double tol, std::int64_t max_sweeps) {
        const std::int64_t size = metric.size;
        q_.resize(size);
        for (std::int64_t j = 0; j < size; ++j) {
            q_[j] = w_[j] != 0 ? std::copysign(l1, w_[j]) : std::clamp(-slope_[j], -l1, l1);
            const double rest = slope_[j] + q_[j];
            if (rest != 0) add(float(-rest / scale_), metric.inverse + j * metric.stride, size);
        }
        std::int64_t sweeps = 0;
        for (double change = 2 * tol; change > tol && sweeps < max_sweeps; ++sweeps) {
            change = 0;
            for (std::int64_t j = 0; j < size; ++j) {
                const double now = start_[j] + double(moved_[j]);
                if (std::abs(q_[j]) == l1 && now * q_[j] >= 0) continue;
                const float *row = metric.inverse + j * metric.stride;
                const double target = std::clamp(q_[j] + now * scale_ / double(row[j]), -l1, l1), step = target - q_[j];
                if (step == 0) continue;
                q_[j] = target;
                add(float(-step / scale_), row, size);
                change = std::max(change, std::abs(step));
            }
        }
        for (std::int64_t j = 0; j < size; ++j) {
            const double now = start_[j] + double(moved_[j]);
            w_[j] = std::abs(q_[j]) == l1 && now * q_[j] > 0 ? now : 0.0;
        }
        return sweeps;
    }

    void add(float step, const float *__restrict row, std::int64_t size) {
        float *__restrict moved = moved_.data();
        for (std::int64_t i = 0; i < size; ++i) moved[i] += step * row[i];
    }

    double scale_ = 1;
    std::vector<std::int64_t> picks_, support_;
    std::vector<double> w_, start_, slope_, q_;
    std::vector<float> moved_, block_;
};

}  // namespace ellzero::bundle
