// Readback: a few bytes of device memory on their way to the host, which does not wait for them until it needs them.
#pragma once

#include <cstddef>
#include <functional>
#include <utility>
#include <vector>

namespace csml {

/// A few bytes of device memory as they are at one moment of the device's work, which the host reads when it likes.
class Readback {
 public:
  virtual ~Readback() = default;
  /// Copies them once everything queued before is done; the host does not wait. Not recorded. A second start() before
  /// wait() drops the first.
  virtual void start(const void* device) = 0;
  /// Waits for the last start() and for nothing queued after it. Valid until the next start().
  virtual const void* wait() = 0;
};

/// Of a backend that has done its work when a call returns.
class DownloadedReadback final : public Readback {
 public:
  using Download = std::function<void(void* host, const void* device, size_t bytes)>;
  DownloadedReadback(size_t bytes, Download download) : download_(std::move(download)), bytes_(bytes) {}
  void start(const void* device) override { download_(bytes_.data(), device, bytes_.size()); }
  const void* wait() override { return bytes_.data(); }

 private:
  Download download_;
  std::vector<std::byte> bytes_;
};

}  // namespace csml
