// The optimiser's arithmetic on the processor: one pass over all parameters together.
//
// libtorch's own operations take the tensors of a list one by one, a start of all threads each, which
// is most of their time for small models. Units are pieces of tensors, by their sizes alone.

#include <c10/core/GradMode.h>

#include "lanes.h"

#include <algorithm>
#include <vector>

using at::Tensor;

namespace {

std::vector<Tensor> tensors(Tensor* const* from, size_t count) {
  std::vector<Tensor> list;
  list.reserve(count);
  for (size_t i = 0; i < count; ++i) list.push_back(*from[i]);
  return list;
}

// Whether the passes below read these: dense numbers of one type on the processor.
bool served(const std::vector<Tensor>& list, at::ScalarType type) {
  return (type == at::kFloat || type == at::kDouble) &&
         std::all_of(list.begin(), list.end(), [&](const Tensor& t) {
           return t.device().is_cpu() && t.scalar_type() == type && t.is_contiguous();
         });
}

// Whether the numbers of two tensors of one shape come in one order in memory.
bool alike(const Tensor& a, const Tensor& b) {
  return a.strides() == b.strides() || (a.is_contiguous() && b.is_contiguous());
}

// The numbers `from` to `to` of the tensor `of` of a list.
struct Piece {
  size_t of;
  int64_t from, to;
};

// The units of a list of tensors, a piece of one tensor each.
class Pieces {
  std::vector<int64_t> sizes, first = {0};

 public:
  explicit Pieces(const std::vector<Tensor>& list) {
    for (const Tensor& t : list) {
      sizes.push_back(t.numel());
      first.push_back(first.back() + (t.numel() + kGrain - 1) / kGrain);
    }
  }

  int64_t count() const { return first.back(); }

  Piece operator[](int64_t unit) const {
    const size_t of = std::upper_bound(first.begin(), first.end(), unit) - first.begin() - 1;
    const int64_t from = (unit - first[of]) * kGrain;
    return {of, from, std::min(sizes[of], from + kGrain)};
  }
};

// ---- norm ----

template <typename T>
struct Squares {
  Pieces pieces;
  std::vector<const T*> from;
  double* sums;  // one a unit
};

template <typename T>
FWP_PART void squares(const Squares<T>& o, int64_t begin, int64_t end) {
  for (int64_t unit = begin; unit < end; ++unit) {
    const Piece p = o.pieces[unit];
    const T* x = o.from[p.of] + p.from;
    o.sums[unit] = sum_of<T, true, false>(x, x, nullptr, p.to - p.from);
  }
}

FWP_KERNEL(sum_squares, squares, Squares)

template <typename T>
Tensor norm(const std::vector<Tensor>& list) {
  Squares<T> o = {Pieces(list), {}, nullptr};
  for (const Tensor& t : list) o.from.push_back(t.const_data_ptr<T>());
  std::vector<double> sums(o.pieces.count());
  o.sums = sums.data();
  at::parallel_for(0, o.pieces.count(), 1, [&](int64_t begin, int64_t end) { sum_squares<T>(o, begin, end); });
  double all = 0;
  for (double sum : sums) all += sum;
  return at::scalar_tensor(std::sqrt(all), list[0].options());
}

// The same by libtorch, for tensors of any device and type.
Tensor plain_norm(const std::vector<Tensor>& list) {
  auto norms = at::_foreach_norm(list, 2);
  bool mixed = false;
  for (auto& norm : norms) mixed = mixed || norm.scalar_type() != norms[0].scalar_type();
  for (auto& norm : norms) {
    const auto kind = norm.scalar_type();
    if (mixed || (kind != at::kDouble && kind != at::kFloat)) {
      norm = norm.to(mixed ? at::kDouble : at::kFloat);
    }
  }
  return at::linalg_vector_norm(at::stack(norms), 2);
}

// ---- clipping ----

template <typename T>
struct Scale {
  Pieces pieces;
  std::vector<T*> to;
  T factor;
};

template <typename T>
FWP_PART void scale(const Scale<T>& o, int64_t begin, int64_t end) {
  for (int64_t unit = begin; unit < end; ++unit) {
    const Piece p = o.pieces[unit];
    for (int64_t i = p.from; i < p.to; ++i) o.to[p.of][i] *= o.factor;
  }
}

FWP_KERNEL(scale_all, scale, Scale)

template <typename T>
void scaled(const std::vector<Tensor>& list, double factor) {
  Scale<T> o = {Pieces(list), {}, T(factor)};
  for (const Tensor& t : list) o.to.push_back(t.mutable_data_ptr<T>());
  at::parallel_for(0, o.pieces.count(), 1, [&](int64_t begin, int64_t end) { scale_all<T>(o, begin, end); });
}

// ---- Adam ----

// One parameter with what its step number makes of the rates.
template <typename T>
struct Member {
  T *parameter, *first, *second;
  const T* gradient;
  T rate;  // over 1 - beta1^step
  T root;  // the square root of 1 - beta2^step
};

template <typename T>
struct Adam {
  Pieces pieces;
  std::vector<Member<T>> members;
  T beta1, beta2, epsilon;
  T shrink;  // of the parameter, for decoupled decay; else 1
  T decay;   // of the parameter that is added to the gradient
};

template <typename T>
FWP_PART void adam(const Adam<T>& o, int64_t begin, int64_t end) {
  for (int64_t unit = begin; unit < end; ++unit) {
    const Piece piece = o.pieces[unit];
    const Member<T>& p = o.members[piece.of];
    T* __restrict parameter = p.parameter;
    T* __restrict first = p.first;
    T* __restrict second = p.second;
    const T* __restrict gradient = p.gradient;
    for (int64_t i = piece.from; i < piece.to; ++i) {
      const T g = gradient[i] + o.decay * parameter[i];
      first[i] += (T(1) - o.beta1) * (g - first[i]);
      second[i] = o.beta2 * second[i] + (T(1) - o.beta2) * g * g;
      const T root = std::sqrt(second[i]) / p.root + o.epsilon;
      parameter[i] = o.shrink * parameter[i] - p.rate * first[i] / root;
    }
  }
}

FWP_KERNEL(adam_step, adam, Adam)

// The numbers of a step.
struct Rates {
  double rate, beta1, beta2, weight_decay, epsilon;
  bool decoupled;
};

template <typename T>
void run(const Rates& r, const std::vector<Tensor>& parameters, const std::vector<Tensor>& gradients,
         const std::vector<Tensor>& first, const std::vector<Tensor>& second, const std::vector<Tensor>& steps) {
  Adam<T> o = {Pieces(parameters), {}, T(r.beta1), T(r.beta2), T(r.epsilon), 1, 0};
  if (r.decoupled) {
    o.shrink = T(1 - r.rate * r.weight_decay);
  } else {
    o.decay = T(r.weight_decay);
  }
  for (size_t i = 0; i < parameters.size(); ++i) {
    const double step = *steps[i].mutable_data_ptr<float>() += 1;
    o.members.push_back({parameters[i].mutable_data_ptr<T>(), first[i].mutable_data_ptr<T>(),
                         second[i].mutable_data_ptr<T>(), gradients[i].const_data_ptr<T>(),
                         T(r.rate / (1 - std::pow(r.beta1, step))), T(std::sqrt(1 - std::pow(r.beta2, step)))});
  }
  at::parallel_for(0, o.pieces.count(), 1, [&](int64_t begin, int64_t end) { adam_step<T>(o, begin, end); });
}

// The same by libtorch, for tensors of any device and type, and for steps that may be skipped.
void plain_adam(const Rates& r, const std::vector<Tensor>& p, const std::vector<Tensor>& g,
                const std::vector<Tensor>& m, const std::vector<Tensor>& v, const std::vector<Tensor>& s,
                const std::optional<Tensor>& inf) {
  // The kernels read the number of this step: the caller counts before the call, and takes the
  // count back where the step was skipped.
  at::_foreach_add_(s, 1);
  if (r.decoupled) {
    at::_fused_adamw_(p, g, m, v, {}, s, r.rate, r.beta1, r.beta2, r.weight_decay, r.epsilon,
                      /*amsgrad=*/false, /*maximize=*/false, {}, inf);
  } else {
    at::_fused_adam_(p, g, m, v, {}, s, r.rate, r.beta1, r.beta2, r.weight_decay, r.epsilon,
                     /*amsgrad=*/false, /*maximize=*/false, {}, inf);
  }
  // Not _foreach_sub_: it has no overload for one tensor, and reads one as a list of one.
  if (inf.has_value()) at::_foreach_add_(s, *inf, -1);
}

}  // namespace

extern "C" {

// One step of Adam or AdamW on all parameters, in place. Where `found_inf`, which may be NULL, is 1,
// everything stays as it is.
char* fwp_adam(Tensor* const* parameters, Tensor* const* gradients, Tensor* const* first, Tensor* const* second,
               Tensor* const* steps, size_t count, double rate, double beta1, double beta2, double weight_decay,
               double epsilon, bool decoupled, const Tensor* found_inf) {
  return guarded([&] {
    c10::AutoGradMode no_grad(false);
    const Rates rates = {rate, beta1, beta2, weight_decay, epsilon, decoupled};
    const auto p = tensors(parameters, count), m = tensors(first, count), v = tensors(second, count),
               s = tensors(steps, count);
    auto g = tensors(gradients, count);
    for (size_t i = 0; i < count; ++i) {
      TORCH_CHECK(g[i].sizes() == p[i].sizes() && m[i].sizes() == p[i].sizes() && v[i].sizes() == p[i].sizes() &&
                      s[i].numel() == 1,
                  "Adam on ", p[i].sizes(), " with a gradient of ", g[i].sizes(), " and moments of ", m[i].sizes(),
                  " and ", v[i].sizes());
      // libtorch takes the numbers of all four as they come in memory.
      TORCH_CHECK(alike(p[i], m[i]) && alike(p[i], v[i]), "Adam on ", p[i].strides(), " with moments of ", m[i].strides(),
                  " and ", v[i].strides());
      if (!alike(p[i], g[i])) g[i] = at::empty_like(p[i], g[i].options()).copy_(g[i]);
    }
    const auto type = p[0].scalar_type();
    if (found_inf == nullptr && served(p, type) && served(g, type) && served(m, type) && served(v, type) &&
        served(s, at::kFloat)) {
      by_type(p[0], [&](auto zero) { run<decltype(zero)>(rates, p, g, m, v, s); });
      return;
    }
    std::optional<Tensor> inf;
    if (found_inf != nullptr) inf = *found_inf;
    plain_adam(rates, p, g, m, v, s, inf);
  });
}

// The Euclidean norm of all tensors together, as one tensor of no axes on their device.
char* fwp_global_norm(Tensor* const* list, size_t count, Tensor** result) {
  return guarded([&] {
    c10::AutoGradMode no_grad(false);
    const auto all = tensors(list, count);
    if (!served(all, all[0].scalar_type())) {
      *result = new Tensor(plain_norm(all));
      return;
    }
    by_type(all[0], [&](auto zero) { *result = new Tensor(norm<decltype(zero)>(all)); });
  });
}

// Scales all tensors in place so that their common norm, given, is at most `limit`.
char* fwp_clip(Tensor* const* list, size_t count, const Tensor* norm, double limit) {
  return guarded([&] {
    c10::AutoGradMode no_grad(false);
    const auto all = tensors(list, count);
    if (!served(all, all[0].scalar_type())) {
      at::_foreach_mul_(all, at::clamp_max(limit / (*norm + 1e-6), 1.0));
      return;
    }
    // In this order a norm that is NaN stays one.
    const double factor = std::min(limit / (norm->item<double>() + 1e-6), 1.0);
    if (factor != 1) by_type(all[0], [&](auto zero) { scaled<decltype(zero)>(all, factor); });
  });
}

}  // extern "C"
