#!/usr/bin/env bash
# Prints the compressed size of an image, which is the sum of its layers as a registry stores them:
#   tests/image-size.sh ENGINE IMAGE PROGRAMS
set -euo pipefail
engine=$1 image=$2 programs=$3
# A program's part of the compressed image must not be larger than this.
bar=4500000

archive=$(mktemp -d)
trap 'rm -rf "$archive"' EXIT
case "$(basename "$engine")" in
  buildah) "$engine" push --quiet "$image" "oci-archive:$archive/image.tar" ;;
  podman) "$engine" save --quiet --format oci-archive --output "$archive/image.tar" "$image" ;;
  *) "$engine" save --output "$archive/image.tar" "$image" ;;
esac
mkdir "$archive/image"
tar --extract --file "$archive/image.tar" --directory "$archive/image"

# Engines save layers compressed or as they are. Beside the layers are a few kB of descriptions.
size=0
while IFS= read -r -d '' file; do
  if gzip --test "$file" 2>/dev/null; then
    bytes=$(stat --format %s "$file")
  else
    bytes=$(gzip --stdout "$file" | wc --bytes)
  fi
  size=$((size + bytes))
done < <(find "$archive/image" -type f -print0)

awk -v size="$size" -v programs="$programs" -v bar="$bar" 'BEGIN {
  each = size / programs
  printf "compressed: %.1f MB for %d programs, %.2f MB a program (%s the bar of %.1f MB)\n",
    size / 1e6, programs, each / 1e6, each <= bar ? "within" : "ABOVE", bar / 1e6
}'
