package main

import (
	"strings"
	"testing"
)

func TestTally(t *testing.T) {
	tests := []struct {
		name   string
		input  string
		ok     bool
		count  string
		want   []string
		absent []string
	}{
		{
			name: "tests and subtests count",
			input: `{"Action":"start","Package":"p"}
{"Action":"run","Package":"p","Test":"TestA"}
{"Action":"output","Package":"p","Test":"TestA","Output":"chatter\n"}
{"Action":"run","Package":"p","Test":"TestA/sub"}
{"Action":"pass","Package":"p","Test":"TestA/sub","Elapsed":0.1}
{"Action":"pass","Package":"p","Test":"TestA","Elapsed":0.1}
{"Action":"output","Package":"p","Output":"ok  \tp\t1.500s\n"}
{"Action":"pass","Package":"p","Elapsed":1.5}
`,
			ok:     true,
			count:  "2 passed, 0 failed, 0 skipped",
			want:   []string{"ok      1.50s     2 tests  p"},
			absent: []string{"chatter", "no test ran"},
		},
		{
			name: "a failure shows its output",
			input: `{"Action":"run","Package":"p","Test":"TestA"}
{"Action":"output","Package":"p","Test":"TestA","Output":"    a_test.go:3: got 1, want 2\n"}
{"Action":"fail","Package":"p","Test":"TestA"}
{"Action":"output","Package":"p","Output":"FAIL\n"}
{"Action":"fail","Package":"p","Elapsed":0.2}
`,
			count:  "0 passed, 1 failed, 0 skipped",
			want:   []string{"--- FAIL p TestA\n    a_test.go:3: got 1, want 2\n", "FAIL    0.20s     1 tests  p"},
			absent: []string{"--- FAIL p\n"},
		},
		{
			name: "skips are grouped by reason",
			input: `{"Action":"run","Package":"p","Test":"TestA"}
{"Action":"output","Package":"p","Test":"TestA","Output":"=== RUN   TestA\n"}
{"Action":"output","Package":"p","Test":"TestA","Output":"    a_test.go:3: needs root\n"}
{"Action":"output","Package":"p","Test":"TestA","Output":"--- SKIP: TestA (0.00s)\n"}
{"Action":"skip","Package":"p","Test":"TestA"}
{"Action":"run","Package":"p","Test":"TestB"}
{"Action":"output","Package":"p","Test":"TestB","Output":"    b_test.go:9: needs root\n"}
{"Action":"skip","Package":"p","Test":"TestB"}
{"Action":"run","Package":"p","Test":"TestC"}
{"Action":"pass","Package":"p","Test":"TestC"}
{"Action":"pass","Package":"p","Elapsed":1}
`,
			ok:    true,
			count: "1 passed, 0 failed, 2 skipped",
			want:  []string{"2  needs root (p TestA, …)"},
		},
		{
			name: "only skipped is nothing run",
			input: `{"Action":"run","Package":"p","Test":"TestA"}
{"Action":"skip","Package":"p","Test":"TestA"}
{"Action":"pass","Package":"p"}
`,
			count: "0 passed, 0 failed, 1 skipped",
			want:  []string{"no test ran", "1  no reason given (p TestA)"},
		},
		{
			name:  "nothing at all",
			count: "0 passed, 0 failed, 0 skipped",
			want:  []string{"no test ran"},
		},
		{
			name: "a build failure is a failure",
			input: `{"ImportPath":"p [p.test]","Action":"build-output","Output":"# p [p.test]\n"}
{"ImportPath":"p [p.test]","Action":"build-output","Output":"./a_test.go:5:2: undefined: x\n"}
{"ImportPath":"p [p.test]","Action":"build-fail"}
{"Action":"start","Package":"p"}
{"Action":"output","Package":"p","Output":"FAIL\tp [build failed]\n"}
{"Action":"fail","Package":"p","Elapsed":0,"FailedBuild":"p [p.test]"}
{"Action":"run","Package":"q","Test":"TestA"}
{"Action":"pass","Package":"q","Test":"TestA"}
{"Action":"pass","Package":"q"}
`,
			count: "1 passed, 1 failed, 0 skipped",
			want:  []string{"undefined: x", "[build failed]", "FAIL    0.00s     0 tests  p"},
		},
		{
			name: "a panic ends tests without a result",
			input: `{"Action":"run","Package":"p","Test":"TestA"}
{"Action":"output","Package":"p","Test":"TestA","Output":"panic: oh\n"}
{"Action":"run","Package":"p","Test":"TestB"}
{"Action":"fail","Package":"p","Elapsed":0.1}
`,
			count: "0 passed, 2 failed, 0 skipped",
			want:  []string{"--- FAIL p TestA\npanic: oh\n", "--- FAIL p TestB\n"},
		},
		{
			name: "a package fails outside its tests",
			input: `{"Action":"run","Package":"p","Test":"TestA"}
{"Action":"pass","Package":"p","Test":"TestA"}
{"Action":"output","Package":"p","Output":"exit status 3\n"}
{"Action":"fail","Package":"p"}
`,
			count: "1 passed, 1 failed, 0 skipped",
			want:  []string{"--- FAIL p\nexit status 3\n"},
		},
		{
			name: "the stream breaks off",
			input: `{"Action":"start","Package":"p"}
{"Action":"run","Package":"p","Test":"TestA"}
{"Action":"pass","Package":"p","Test":"TestA"}
{"Action":"run","Package":"p","Test":"TestB"}
`,
			count: "1 passed, 1 failed, 0 skipped",
			want:  []string{"--- FAIL p TestB"},
		},
		{
			name:  "other lines pass through",
			input: "go: no such module\nnull\n{\"a\":1}\n",
			count: "0 passed, 0 failed, 0 skipped",
			want:  []string{"go: no such module\nnull\n{\"a\":1}\n"},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var out strings.Builder
			tl := newTally(&out)
			if err := tl.read(strings.NewReader(tt.input)); err != nil {
				t.Fatal(err)
			}
			if got := tl.close(); got != tt.ok {
				t.Errorf("close() = %v, want %v", got, tt.ok)
			}
			if !strings.HasSuffix("\n"+out.String(), "\n"+tt.count+"\n") {
				t.Errorf("last line is not %q in:\n%s", tt.count, out.String())
			}
			for _, w := range tt.want {
				if !strings.Contains(out.String(), w) {
					t.Errorf("no %q in:\n%s", w, out.String())
				}
			}
			for _, w := range tt.absent {
				if strings.Contains(out.String(), w) {
					t.Errorf("unwanted %q in:\n%s", w, out.String())
				}
			}
		})
	}
}

// A test that prints without end is cut, once, and its result still counts.
func TestTallyBoundsOutput(t *testing.T) {
	var out strings.Builder
	tl := newTally(&out)
	tl.line(`{"Action":"run","Package":"p","Test":"TestA"}`)
	chunk := `{"Action":"output","Package":"p","Test":"TestA","Output":"` + strings.Repeat("x", 100_000) + `\n"}`
	for range 20 {
		tl.line(chunk)
	}
	tl.line(`{"Action":"fail","Package":"p","Test":"TestA"}`)
	tl.line(`{"Action":"fail","Package":"p"}`)
	tl.close()
	if n := out.Len(); n > maxOutput+1000 {
		t.Errorf("%d bytes of output, want about %d", n, maxOutput)
	}
	if n := strings.Count(out.String(), "more left out"); n != 1 {
		t.Errorf("said %d times that output is left out, want 1", n)
	}
}
