#!/bin/sh
# fuzz.sh - run every fuzz target of the module, one after the other, each for the time given.
#
#   usage: fuzz.sh [TIME]         (30s)
#
# The exit status is 1 when a target found something; the others still get their turn.
set -u

time=${1:-30s}
status=0
ran=0

# The names go through files: a pipe would lose what the loops count and whether go test could build the package.
list=$(mktemp)
trap 'rm -f "$list" "$list.pkg" "$list.out"' EXIT
for pkg in $(go list ./...); do
	go test -list '^Fuzz' "$pkg" >"$list.pkg" || {
		cat "$list.pkg"
		status=1
	}
	awk -v pkg="$pkg" '/^Fuzz/ { print pkg, $1 }' "$list.pkg" >>"$list"
done

# fuzz runs a target of a package. Two workers, so that the memory and the time that fuzzing takes do not depend on the
# machine; and inputs that are new are not made smaller for long, which takes a minute each otherwise.
fuzz() {
	go test -run '^$' -fuzz "^$2\$" -fuzztime "$time" -fuzzminimizetime 2s -parallel 2 "$1" </dev/null >"$list.out" 2>&1
	set -- $?
	cat "$list.out"
	return "$1"
}

# untimely says whether a target has only failed because the time was over while a worker was at an input: go test does
# not always know that for what it is (golang.org/issue/75804, mended in Go 1.27). What it finds it writes to a file.
untimely() {
	grep -q '^ *context deadline exceeded$' "$list.out" && ! grep -q 'Failing input' "$list.out"
}

while read -r pkg target; do
	echo "fuzzing $target of $pkg for $time"
	fuzz "$pkg" "$target" || { untimely && fuzz "$pkg" "$target"; } || status=1
	ran=$((ran + 1))
done <"$list"
echo "$ran fuzz targets run"
[ "$ran" -gt 0 ] || status=1
exit "$status"
