// A GPU in host memory, for tests: tensors with a storage of their own device (torch's PrivateUse1), on which every
// operation runs the CPU's kernel. What a CUDA device refuses is refused: a tensor on the host beside one on the device,
// unless it is a single number. What it would wait for, copy and launch is counted in Python (emulated_device.py).
#include <ATen/ATen.h>
#include <ATen/EmptyTensor.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/Resize.h>
#include <ATen/native/TensorShape.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/resize_native.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

namespace {
using at::Tensor;
using c10::Device;
using c10::DeviceType;
using c10::DispatchKey;
using c10::DispatchKeySet;
using c10::SymIntArrayRef;

const Device kEmulated(DeviceType::PrivateUse1, 0);

// ---- memory: the host's, under the device's name -------------------------------------------------------------------

struct Allocator final : c10::Allocator {
  static void release(void* memory) { c10::GetCPUAllocator()->raw_deallocate(memory); }
  c10::DataPtr allocate(size_t bytes) override {
    void* memory = c10::GetCPUAllocator()->raw_allocate(bytes);
    return {memory, memory, &release, kEmulated};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, std::size_t bytes) const override { default_copy_data(to, from, bytes); }
};
Allocator allocator;
REGISTER_ALLOCATOR(DeviceType::PrivateUse1, &allocator);

// ---- one device, one stream, on which everything is done at once ---------------------------------------------------

struct Guard final : c10::impl::DeviceGuardImplInterface {
  DeviceType type() const override { return DeviceType::PrivateUse1; }
  Device exchangeDevice(Device) const override { return kEmulated; }
  Device getDevice() const override { return kEmulated; }
  void setDevice(Device) const override {}
  void uncheckedSetDevice(Device) const noexcept override {}
  c10::Stream stream() const { return c10::Stream(c10::Stream::DEFAULT, kEmulated); }
  c10::Stream getStream(Device) const override { return stream(); }
  c10::Stream getNewStream(Device, int) const override { return stream(); }
  c10::Stream getDefaultStream(Device) const override { return stream(); }
  c10::Stream exchangeStream(c10::Stream) const override { return stream(); }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  void record(void**, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, const c10::DeviceIndex) const noexcept override {}
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream&) const override {}
  void synchronizeEvent(void*) const override {}
  void recordDataPtrOnStream(const c10::DataPtr&, const c10::Stream&) const override {}
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

struct Hooks final : at::PrivateUse1HooksInterface {
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  bool isAvailable() const override { return true; }
};
const bool hooked = (at::RegisterPrivateUse1HooksInterface(new Hooks()), true);

// ---- the same memory seen from the host, and back ------------------------------------------------------------------

bool emulated(const Tensor& tensor) { return tensor.defined() && tensor.device().type() == DeviceType::PrivateUse1; }

Tensor seen_as(const Tensor& tensor, Device device, DispatchKey key) {
  auto* owner = new c10::Storage(tensor.storage());  // lives as long as the view of it
  c10::DataPtr memory(owner->nbytes() ? owner->mutable_data() : nullptr, owner,
                      [](void* storage) { delete static_cast<c10::Storage*>(storage); }, device);
  c10::Allocator* alloc = device.is_cpu() ? static_cast<c10::Allocator*>(c10::GetCPUAllocator()) : &allocator;
  c10::Storage storage(c10::Storage::use_byte_size_t(), owner->nbytes(), std::move(memory), alloc, true);
  auto view = at::detail::make_tensor<c10::TensorImpl>(std::move(storage), DispatchKeySet(key), tensor.dtype());
  auto* impl = view.unsafeGetTensorImpl();
  impl->set_sizes_and_strides(tensor.sizes(), tensor.strides(), tensor.storage_offset());
  if (tensor.unsafeGetTensorImpl()->is_wrapped_number()) impl->set_wrapped_number(true);
  return view;
}
Tensor on_host(const Tensor& tensor) {
  return emulated(tensor) ? seen_as(tensor, Device(c10::kCPU), DispatchKey::CPU) : tensor;
}
Tensor on_device(const Tensor& tensor) {
  return tensor.defined() && tensor.device().is_cpu() ? seen_as(tensor, kEmulated, DispatchKey::PrivateUse1) : tensor;
}

// ---- every operation without a kernel of its own: the CPU's --------------------------------------------------------

struct Met {  // which devices an operation's tensors are on
  bool host_vector = false, device = false;
  void look(const Tensor& tensor) {
    device |= emulated(tensor);
    host_vector |= tensor.defined() && tensor.device().is_cpu() && tensor.dim() > 0;
  }
};

// Host copies of the arguments. An empty `out` becomes a fresh tensor, since the CPU's kernel will resize it.
c10::IValue argument_on_host(const c10::IValue& value, const c10::Argument& declared, bool index, Met& met, Tensor& fresh) {
  if (value.isTensor()) {
    const auto tensor = value.toTensor();
    met.look(tensor);
    if (emulated(tensor) && tensor.numel() == 0 && declared.is_out()) {
      return fresh = at::empty({0}, tensor.options().device(c10::kCPU));
    }
    return on_host(tensor);
  }
  if (value.isTensorList()) {
    c10::List<Tensor> found;
    for (const auto& tensor : value.toTensorVector()) { met.look(tensor); found.push_back(on_host(tensor)); }
    return found;
  }
  if (value.isOptionalTensorList()) {
    c10::List<std::optional<Tensor>> found;
    for (const auto& tensor : value.toOptionalTensorVector()) {
      if (tensor && !index) met.look(*tensor);  // CUDA copies an index from the host
      found.push_back(tensor ? std::optional<Tensor>(on_host(*tensor)) : std::nullopt);
    }
    return found;
  }
  return value.isDevice() ? c10::IValue(Device(c10::kCPU)) : value;
}

// What an operation returns: the argument that it wrote into, else its result under the device's name.
c10::IValue result_on_device(const c10::IValue& value, const c10::Argument& declared,
                             const std::vector<c10::Argument>& arguments, const std::vector<c10::IValue>& given) {
  const auto* alias = declared.alias_info();
  if (alias && alias->isWrite() && value.isTensor()) {
    for (size_t i = 0; i < given.size(); i++) {
      const auto* other = arguments[i].alias_info();
      if (other && other->isWrite() && other->afterSets() == alias->afterSets() && given[i].isTensor()) return given[i];
    }
  }
  if (value.isTensor()) return on_device(value.toTensor());
  if (value.isTensorList()) {
    c10::List<Tensor> found;
    for (const auto& tensor : value.toTensorVector()) found.push_back(on_device(tensor));
    return found;
  }
  return value;
}

void run_on_host(const c10::OperatorHandle& operation, torch::jit::Stack* stack) {
  const auto& schema = operation.schema();
  const size_t count = schema.arguments().size(), first = stack->size() - count;
  const std::vector<c10::IValue> given(stack->begin() + first, stack->end());
  const bool index = schema.name().find("index") != std::string::npos;
  std::vector<Tensor> fresh(count);
  Met met;
  for (size_t i = 0; i < count; i++) {
    (*stack)[first + i] = argument_on_host(given[i], schema.arguments()[i], index, met, fresh[i]);
  }
  TORCH_CHECK(!(met.device && met.host_vector),
              "Expected all tensors to be on the same device, but found the emulated one and cpu! (", schema.name(), ")");
  operation.redispatchBoxed(DispatchKeySet(DispatchKey::CPU), stack);
  for (size_t i = 0; i < count; i++) {
    if (!fresh[i].defined()) continue;
    auto* out = given[i].toTensor().unsafeGetTensorImpl();
    const auto made = on_device(fresh[i]);
    out->set_storage_keep_dtype(made.storage());
    out->set_sizes_and_strides(made.sizes(), made.strides(), made.storage_offset());
  }
  const size_t results = schema.returns().size(), start = stack->size() - results;
  for (size_t i = 0; i < results; i++) {
    auto& value = (*stack)[start + i];
    value = result_on_device(value, schema.returns()[i], schema.arguments(), given);
  }
}

// ---- what makes tensors and looks at them differently, and convolution ---------------------------------------------

using Type = std::optional<at::ScalarType>;
using Place = std::optional<Device>;

Tensor empty(SymIntArrayRef size, Type type, std::optional<at::Layout>, Place, std::optional<bool>,
             std::optional<at::MemoryFormat> format) {
  const auto kind = type.value_or(at::get_default_dtype_as_scalartype());
  return at::detail::empty_generic(C10_AS_INTARRAYREF_SLOW(size), &allocator,
                                   DispatchKeySet(DispatchKey::PrivateUse1), kind, format);
}
Tensor empty_strided(SymIntArrayRef size, SymIntArrayRef stride, Type type, std::optional<at::Layout>, Place,
                     std::optional<bool>) {
  const auto kind = type.value_or(at::get_default_dtype_as_scalartype());
  return at::detail::empty_strided_generic(C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride), &allocator,
                                           DispatchKeySet(DispatchKey::PrivateUse1), kind);
}
Tensor copy_from(const Tensor& from, const Tensor& to, bool) {
  on_host(to).copy_(on_host(from));
  return to;
}
Tensor as_strided(const Tensor& self, SymIntArrayRef size, SymIntArrayRef stride, std::optional<c10::SymInt> offset) {
  const auto start = offset ? std::optional<int64_t>(offset->guard_int(__FILE__, __LINE__)) : std::nullopt;
  return at::native::as_strided_tensorimpl(self, C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride), start);
}
Tensor view(const Tensor& self, SymIntArrayRef size) { return at::native::view(self, C10_AS_INTARRAYREF_SLOW(size)); }
Tensor reshape_alias(const Tensor& self, SymIntArrayRef size, SymIntArrayRef stride) {
  return at::native::_reshape_alias(self, C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride));
}
Tensor unfold(const Tensor& self, int64_t dimension, int64_t size, int64_t step) {
  return at::native::unfold(self, dimension, size, step);
}
const Tensor& resize(const Tensor& self, SymIntArrayRef size, std::optional<at::MemoryFormat> format) {
  return at::native::resize_(self, C10_AS_INTARRAYREF_SLOW(size), format);
}
void check_both(const Tensor& x, const Tensor& weight) {
  TORCH_CHECK(emulated(x) && emulated(weight), "convolution: Expected all tensors to be on the same device");
}
Tensor convolution(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, SymIntArrayRef stride,
                   SymIntArrayRef padding, SymIntArrayRef dilation, bool transposed, SymIntArrayRef output_padding,
                   c10::SymInt groups) {
  check_both(x, weight);
  const auto shift = bias ? std::optional<Tensor>(on_host(*bias)) : std::nullopt;
  return on_device(at::convolution_symint(on_host(x), on_host(weight), shift, stride, padding, dilation, transposed,
                                          output_padding, groups));
}
std::tuple<Tensor, Tensor, Tensor> convolution_backward(
    const Tensor& grad, const Tensor& x, const Tensor& weight, SymIntArrayRef stride, SymIntArrayRef padding,
    SymIntArrayRef dilation, bool transposed, SymIntArrayRef output_padding, c10::SymInt groups,
    std::array<bool, 3> wanted) {
  check_both(x, weight);
  const std::vector<c10::SymInt> bias{weight.sym_size(0)};
  const auto found = at::convolution_backward_symint(on_host(grad), on_host(x), on_host(weight), SymIntArrayRef(bias),
                                                     stride, padding, dilation, transposed, output_padding, groups, wanted);
  return {on_device(std::get<0>(found)), on_device(std::get<1>(found)), on_device(std::get<2>(found))};
}
}  // namespace

TORCH_LIBRARY_IMPL(_, PrivateUse1, library) {
  library.fallback(torch::CppFunction::makeFromBoxedFunction<&run_on_host>());
}
TORCH_LIBRARY_IMPL(aten, PrivateUse1, library) {
  library.impl("empty.memory_format", TORCH_FN(empty));
  library.impl("empty_strided", TORCH_FN(empty_strided));
  library.impl("_copy_from", TORCH_FN(copy_from));
  library.impl("as_strided", TORCH_FN(as_strided));
  library.impl("view", TORCH_FN(view));
  library.impl("_reshape_alias", TORCH_FN(reshape_alias));
  library.impl("unfold", TORCH_FN(unfold));
  library.impl("resize_", TORCH_FN(resize));
  library.impl("convolution_overrideable", TORCH_FN(convolution));
  library.impl("convolution_backward_overrideable", TORCH_FN(convolution_backward));
}
