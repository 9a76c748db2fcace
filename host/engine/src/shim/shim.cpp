// What the Rust binding of libtorch lacks: custom autograd functions, gradients with given output
// gradients, the state of random generators, and libtorch's thread pool.
//
// Every entry point is `extern "C"`, catches every C++ exception, and returns NULL or an error text
// that the caller frees with `fwp_free`. Arrays of tensors are arrays of `at::Tensor*`; a tensor
// handed out is a `new at::Tensor` that the receiver owns (the Rust binding deletes it).

#include <ATen/ATen.h>
#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/api/include/torch/version.h>

#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

#include "guard.h"

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

namespace {

std::vector<Tensor> tensors(Tensor* const* from, size_t count) {
  std::vector<Tensor> list;
  list.reserve(count);
  for (size_t i = 0; i < count; ++i) list.push_back(from[i] == nullptr ? Tensor() : *from[i]);
  return list;
}

// Hands `from` out; an undefined tensor becomes NULL.
void give(const std::vector<Tensor>& from, Tensor** to) {
  for (size_t i = 0; i < from.size(); ++i) {
    to[i] = from[i].defined() ? new Tensor(from[i]) : nullptr;
  }
}

at::Device device_of(int32_t cuda_index) {
  return cuda_index < 0 ? at::Device(at::kCPU)
                        : at::Device(at::kCUDA, static_cast<at::DeviceIndex>(cuda_index));
}

}  // namespace

extern "C" {

// Computes input gradients. `grads` holds NULL for an undefined one; `result` has `inputs` slots
// that receive owned tensors or NULL. Returns NULL or an error text made with malloc.
typedef char* (*fwp_backward)(void* closure, Tensor* const* grads, size_t outputs,
                              Tensor* const* saved, size_t saved_count, const uint8_t* needed,
                              size_t inputs, Tensor** result);
typedef void (*fwp_drop)(void* closure);
typedef char* (*fwp_range)(void* closure, int64_t begin, int64_t end);

}  // extern "C"

namespace {

// Owns a Rust closure: freed exactly once, with the last reference to this holder.
struct Closure : torch::CustomClassHolder {
  Closure(void* data, fwp_backward backward, fwp_drop drop)
      : data(data), backward(backward), drop(drop) {}
  ~Closure() override { drop(data); }
  void* data;
  fwp_backward backward;
  fwp_drop drop;
};

struct Pack {
  c10::intrusive_ptr<Closure> closure;
  variable_list outputs;
  variable_list saved;
};

// Rationale: the inputs travel as at::TensorList. A std::vector<Tensor> compiles as well, but no
// overload tracks it, and the outputs then silently do not require a gradient.
struct Bridge : torch::autograd::Function<Bridge> {
  static variable_list forward(AutogradContext* context, at::TensorList inputs, Pack* pack) {
    context->set_materialize_grads(false);
    context->save_for_backward(pack->saved);
    context->saved_data["closure"] = c10::IValue::make_capsule(pack->closure);
    context->saved_data["inputs"] = static_cast<int64_t>(inputs.size());
    return pack->outputs;
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    auto holder = context->saved_data.at("closure").toCapsule();
    auto* closure = static_cast<Closure*>(holder.get());
    const size_t inputs = static_cast<size_t>(context->saved_data.at("inputs").toInt());
    const variable_list saved = context->get_saved_variables();

    std::vector<Tensor*> grad_pointers(gradients.size(), nullptr);
    for (size_t i = 0; i < gradients.size(); ++i) {
      if (gradients[i].defined()) grad_pointers[i] = &gradients[i];
    }
    std::vector<Tensor*> saved_pointers(saved.size(), nullptr);
    for (size_t i = 0; i < saved.size(); ++i) {
      if (saved[i].defined()) saved_pointers[i] = const_cast<Tensor*>(&saved[i]);
    }
    std::vector<uint8_t> needed(inputs, 0);
    for (size_t i = 0; i < inputs; ++i) needed[i] = context->needs_input_grad(i) ? 1 : 0;

    std::vector<Tensor*> results(inputs, nullptr);
    char* error = closure->backward(closure->data, grad_pointers.data(), gradients.size(),
                                    saved_pointers.data(), saved.size(), needed.data(), inputs,
                                    results.data());
    // One slot for each input, and an undefined one for the pack.
    variable_list answer(inputs + 1);
    for (size_t i = 0; i < inputs; ++i) {
      if (results[i] == nullptr) continue;
      answer[i] = std::move(*results[i]);
      delete results[i];
    }
    if (error != nullptr) {
      const std::string text(error);
      std::free(error);
      throw std::runtime_error(text);
    }
    return answer;
  }
};

}  // namespace

extern "C" {

void fwp_free(char* text) { std::free(text); }

char* fwp_text(const char* bytes, size_t size) {
  char* copy = static_cast<char*>(std::malloc(size + 1));
  if (copy == nullptr) return nullptr;
  std::memcpy(copy, bytes, size);
  copy[size] = 0;
  return copy;
}

// Takes `closure` in every case: it is dropped when the graph node goes, or at once on error.
char* fwp_custom_function(Tensor* const* inputs, size_t input_count, Tensor* const* outputs,
                          size_t output_count, Tensor* const* saved, size_t saved_count,
                          void* closure, fwp_backward backward, fwp_drop drop, Tensor** results) {
  return guarded([&] {
    // First of all, so that each way out of here frees the closure once.
    auto holder = c10::make_intrusive<Closure>(closure, backward, drop);
    Pack pack{std::move(holder), tensors(outputs, output_count), tensors(saved, saved_count)};
    const std::vector<Tensor> list = tensors(inputs, input_count);
    const variable_list made = Bridge::apply(at::TensorList(list), &pack);
    TORCH_CHECK(made.size() == output_count, "the custom function returned ", made.size(),
                " outputs for ", output_count);
    give(made, results);
  });
}

char* fwp_gradients(Tensor* const* outputs, Tensor* const* output_grads, size_t output_count,
                    Tensor* const* inputs, size_t input_count, bool keep_graph, bool create_graph,
                    Tensor** results) {
  return guarded([&] {
    const auto made = torch::autograd::grad(
        tensors(outputs, output_count), tensors(inputs, input_count),
        tensors(output_grads, output_count), keep_graph, create_graph, /*allow_unused=*/true);
    give(made, results);
  });
}

bool fwp_grad_enabled() { return at::GradMode::is_enabled(); }

char* fwp_clear_gradients(Tensor* const* parameters, size_t count) {
  return guarded([&] {
    for (size_t i = 0; i < count; ++i) parameters[i]->mutable_grad().reset();
  });
}

char* fwp_random_state(int32_t device, Tensor** result) {
  return guarded([&] {
    auto generator = at::globalContext().defaultGenerator(device_of(device));
    std::lock_guard<std::mutex> lock(generator.mutex());
    *result = new Tensor(generator.get_state());
  });
}

char* fwp_set_random_state(int32_t device, const Tensor* state) {
  return guarded([&] {
    auto generator = at::globalContext().defaultGenerator(device_of(device));
    std::lock_guard<std::mutex> lock(generator.mutex());
    generator.set_state(*state);
  });
}

// Ends the process at once: no destructors, which other threads may still need.
void fwp_leave_now(int code) { _exit(code); }

// Runs `body` over [0, count) in pieces of at least `grain` on libtorch's own threads.
char* fwp_parallel_for(int64_t count, int64_t grain, void* closure, fwp_range body) {
  return guarded([&] {
    at::parallel_for(0, count, grain, [&](int64_t begin, int64_t end) {
      char* error = body(closure, begin, end);
      if (error == nullptr) return;
      const std::string text(error);
      std::free(error);
      throw std::runtime_error(text);
    });
  });
}

// The version of the libtorch that this was compiled against; static text, never freed.
const char* fwp_libtorch_version() { return TORCH_VERSION; }

}  // extern "C"
