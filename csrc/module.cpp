// The extension module. Importing it runs the registrations of all other files; Python itself only asks how it was built.
#include <pybind11/pybind11.h>
#include <torch/headeronly/version.h>

#include "clead/isa.h"

#define CLEAD_TEXT_(x) #x
#define CLEAD_TEXT(x) CLEAD_TEXT_(x)

namespace {

pybind11::dict build_info() {
  pybind11::dict info;
#if defined(__clang__)
  info["compiler"] = "clang " __clang_version__;
#else
  info["compiler"] = "gcc " __VERSION__;
#endif
  info["torch"] = TORCH_VERSION;
#define CLEAD_LIST(isa) #isa " "
  pybind11::str isas(CLEAD_FOR_EACH_ISA(CLEAD_LIST));
  info["isas"] = isas.attr("strip")();
  info["isa"] = clead::isa_name(clead::isa());
  info["bf16"] = clead::products16_name(clead::products16());
  info["cuda"] = CLEAD_TEXT(CLEAD_CUDA_ARCHS);
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Native kernels of clead_kernels; see clead_kernels._native.";
  m.def("build_info", &build_info, "Compiler, torch, instruction sets and CUDA architectures of this build.");
}
