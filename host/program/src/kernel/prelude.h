#include <stdint.h>

typedef real vf __attribute__((vector_size(FWP_LANES * sizeof(real)), may_alias));
typedef real vfu __attribute__((vector_size(FWP_LANES * sizeof(real)), may_alias, aligned(sizeof(real))));
#if FWP_DOUBLE
typedef int64_t fwp_lane;
#else
typedef int32_t fwp_lane;
#endif
typedef fwp_lane vi __attribute__((vector_size(FWP_LANES * sizeof(fwp_lane)), may_alias));
typedef fwp_lane fwp_lane_alias __attribute__((may_alias));
