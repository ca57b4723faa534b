#!/bin/sh
# arrows.sh - check which package imports which: sqfs <- cache <- fusefs, runtime by itself, cmd and bench above all,
# internal below all. Flags are read in cmd and bench/parts only, and nothing logs but through log/slog. Tests, and they
# alone, may make hostile images and import what is for tests. Needs nothing but Go.
set -eu

module=$(go list -m)
for arch in amd64 arm64; do
	# A package's tests obey as well, except that they may have flags: "go test -update" is one.
	# shellcheck disable=SC2016 # the $p is the template's
	GOOS=linux GOARCH=$arch CGO_ENABLED=0 go list -e -f '{{$p := .ImportPath}}
		{{range .Imports}}{{$p}} {{.}} code{{"\n"}}{{end}}
		{{range .TestImports}}{{$p}} {{.}} test{{"\n"}}{{end}}
		{{range .XTestImports}}{{$p}} {{.}} test{{"\n"}}{{end}}' ./...
done | sort -u | awk -v module="$module/" '
	BEGIN {
		may["sqfs"] = " sqfs "
		may["cache"] = " cache sqfs "
		may["fusefs"] = " fusefs cache sqfs internal "
		may["internal"] = " internal "
		may["runtime"] = " runtime internal "
		may["bench"] = may["cmd"] = " bench cmd fusefs cache sqfs runtime internal "
	}
	function top(path) { path = substr(path, length(module) + 1); sub(/\/.*/, "", path); return path }
	function refuse(why) { print $1 " imports " $2 ": " why; bad = 1 }
	NF == 3 {
		seen++
		from = top($1)
		if (!(from in may)) { if (!told[from]++) refuse("there is no rule for " from "/ in arrows.sh") ; next }
		if ($3 == "test" && ($2 == module "testdata/hostile" || $2 == module "internal/testenv")) next
		if ($3 == "code" && $2 ~ /\/(testenv|imagetest)$/) refuse("it is for tests")
		if (index($2, module) == 1 && !index(may[from], " " top($2) " ")) refuse(from " may import only" may[from])
		if ($3 == "code" && from != "cmd" && $1 != module "bench/parts" && $2 ~ /^(flag|github.com\/spf13\/(cobra|pflag))$/) refuse("flags are read in cmd and bench/parts only")
		if ($2 == "log") refuse("use log/slog")
	}
	END {
		if (!seen) print "go list told of no package"
		exit bad || !seen
	}
'
