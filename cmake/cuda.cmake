# Sets MASKFORMER_WITH_CUDA, by MASKFORMER_FAST_CUDA and by whether nvcc is there, and
# MASKFORMER_CUDA_ARCHITECTURES, what is built for in words: "sm_80 sm_90 compute_90".
#
# Architectures: CMAKE_CUDA_ARCHITECTURES, else the environment's CUDAARCHS (80-real;90), else its
# TORCH_CUDA_ARCH_LIST (8.0;9.0+PTX), else the following; a bare number is code and PTX.
set(default_architectures 80-real 86-real 89-real 90)

set(MASKFORMER_WITH_CUDA OFF)
if(MASKFORMER_FAST_CUDA STREQUAL "off")
  return()
endif()
include(CheckLanguage)
check_language(CUDA)
if(NOT CMAKE_CUDA_COMPILER)
  if(MASKFORMER_FAST_CUDA STREQUAL "on")
    message(FATAL_ERROR "MASKFORMER_FAST_CUDA=on: no nvcc that works was found; put it on PATH or "
                        "set CUDACXX")
  endif()
  message(STATUS "CUDA: nvcc was not found; building for the CPU only")
  return()
endif()

# "8.0;9.0a;9.0+PTX", separated by spaces, commas or semicolons, as CMake writes it.
function(translate_torch_list list result)
  string(REGEX REPLACE "[ ,]+" ";" items "${list}")
  set(translated "")
  foreach(item IN LISTS items)
    if(NOT item MATCHES "^([0-9]+)\\.([0-9]+[af]?)(\\+PTX)?$")
      message(FATAL_ERROR "TORCH_CUDA_ARCH_LIST: expected items like 8.0 or 9.0+PTX, got ${item}")
    endif()
    set(number "${CMAKE_MATCH_1}${CMAKE_MATCH_2}")
    if(CMAKE_MATCH_3)
      list(APPEND translated ${number})
    else()
      list(APPEND translated ${number}-real)
    endif()
  endforeach()
  set(${result} "${translated}" PARENT_SCOPE)
endfunction()

if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES AND NOT DEFINED ENV{CUDAARCHS})
  if(DEFINED ENV{TORCH_CUDA_ARCH_LIST})
    translate_torch_list("$ENV{TORCH_CUDA_ARCH_LIST}" CMAKE_CUDA_ARCHITECTURES)
  else()
    set(CMAKE_CUDA_ARCHITECTURES ${default_architectures})
  endif()
endif()

set(CMAKE_CUDA_STANDARD 17)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_CUDA_EXTENSIONS OFF)
set(CMAKE_CUDA_VISIBILITY_PRESET hidden)
set(CMAKE_CUDA_RUNTIME_LIBRARY Static)  # so that the module imports where there is no driver
enable_language(CUDA)
set(MASKFORMER_WITH_CUDA ON)

set(words "")
foreach(architecture IN LISTS CMAKE_CUDA_ARCHITECTURES)
  string(REGEX REPLACE "-.*" "" number "${architecture}")
  if(NOT architecture MATCHES "-virtual$")
    list(APPEND words sm_${number})
  endif()
  if(NOT architecture MATCHES "-real$")
    list(APPEND words compute_${number})
  endif()
endforeach()
list(JOIN words " " MASKFORMER_CUDA_ARCHITECTURES)
message(STATUS "CUDA ${CMAKE_CUDA_COMPILER_VERSION}: ${MASKFORMER_CUDA_ARCHITECTURES}")
