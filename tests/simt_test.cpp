// The executor finds what it promises to find.
#include <doctest/doctest.h>
TEST_CASE("placeholder") {}
