// CUTLASS's header of this name launches with <<<>>>, which only nvcc reads.
#pragma once
