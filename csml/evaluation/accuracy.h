// Top-1 and top-5 accuracy of scores.
#pragma once

namespace csml {

struct Accuracy {
  double top1 = 0, top5 = 0;  // percent
};

/// How many classes are ahead of the true one in a row of scores: those of a greater score, of an equal score and a
/// lower number, and, where a score is NaN, all of them: what cannot be told is not right.
inline int classes_ahead(const float* scores, int classes, int truth) {
  const float own = scores[truth];
  int ahead = 0;
  for (int c = 0; c < classes; ++c) ahead += c != truth && !(scores[c] < own || (scores[c] == own && c > truth));
  return ahead;
}

}  // namespace csml
