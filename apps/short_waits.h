// Threads that wait for each other spin for a moment and then sleep.
#pragma once

#include <string>

namespace csml {

/// Rounds of spinning before a thread sleeps. By default GNU OpenMP spins for some ten milliseconds at every barrier; on
/// cores that other work shares, such a thread waits for one that it keeps from running.
inline constexpr const char* kShortWait = "1000";

/// How threads wait, by the environment: "OMP_WAIT_POLICY=passive", "GOMP_SPINCOUNT=1000", or empty where nothing says.
std::string waits_in_force();

/// GNU OpenMP reads its environment before main: where nothing in it says how threads wait, starts this program again
/// with GOMP_SPINCOUNT=kShortWait, as the same process. Returns otherwise, and where the program cannot be started again.
void prefer_short_waits(char** argv);

}  // namespace csml
