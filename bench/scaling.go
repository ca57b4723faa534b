package bench

import "fmt"

// scalingReaders are the places on the curves.
var scalingReaders = []int{1, 2, 4, 8, 16, 32, 64}

// scalingOperations bounds one point of a curve: on a fresh mount, all readers together.
const scalingOperations = 4000

// scalingWorkloads are the points of all curves: what an operation costs when more and more readers want one at once.
// Each point is cold, as what the kernel has cached never reaches a server.
func (b *comparison) scalingWorkloads() []workload {
	var all []workload
	for _, c := range []struct {
		name string
		job  job
	}{
		{nameOfShuffled, job{Do: "read-list", List: b.listOf("shuffled")}},
		{nameOfRandom, job{Do: "pread", File: []byte(b.image.file)}},
	} {
		for _, n := range scalingReaders {
			c.job.Readers, c.job.Operations = n, scalingOperations
			w := workload{name: fmt.Sprintf("%s, %s", c.name, plural(n, "reader")), coldOnly: true, curve: c.name, x: n}
			if w.run = b.inChild(c.job); c.job.Do == "pread" {
				w.run = b.oneFile(w.run)
			}
			all = append(all, w)
		}
	}
	return all
}

// Curve is what one operation costs, over something.
type Curve struct {
	Operation string  `json:"operation"`
	X         string  `json:"x"` // what there is more and more of
	Points    []Point `json:"points"`
}

// Point is one place on a curve, with the lines of all peers.
type Point struct {
	X int `json:"x"`
	Row
}

// CurveOverReaders is the X of curves over the number of readers, CurveOverInodes that of curves over the size of trees.
const (
	CurveOverReaders = "readers"
	CurveOverInodes  = "inodes"
)

// addPoint adds a point to a curve over readers.
func (r *Report) addPoint(operation string, x int, line Row) {
	for i := range r.Curves {
		if r.Curves[i].Operation == operation {
			r.Curves[i].Points = append(r.Curves[i].Points, Point{x, line})
			return
		}
	}
	r.Curves = append(r.Curves, Curve{operation, CurveOverReaders, []Point{{x, line}}})
}

// view is a way to look at a curve.
type view struct {
	name string
	// of takes what is shown from a measure.
	of func(p *Point, m spread) spread
	// cpu says that the measure is CPU time, and not wall time.
	cpu bool
}

// spread is a middle with the least and the most.
type spread struct{ mid, low, high float64 }

func (s spread) times(f float64) spread { return spread{s.mid * f, s.low * f, s.high * f} }

// views are the ways to look at a curve.
func (c *Curve) views() []view {
	perOperation := func(p *Point, m spread) spread { return m.times(1e6 / float64(p.Operations)) }
	if c.X != CurveOverReaders {
		return []view{
			{"µs for each inode", perOperation, false},
			{"µs of CPU time for each inode", perOperation, true},
		}
	}
	return []view{
		{"operations a second", func(p *Point, m spread) spread {
			n := float64(p.Operations)
			return spread{n / m.mid, n / m.high, n / m.low}
		}, false},
		{"µs that a reader waits for each", func(p *Point, m spread) spread { return perOperation(p, m).times(float64(p.X)) }, false},
		{"µs of CPU time for each", perOperation, true},
	}
}

// value is what a view shows of a peer at a point, if there is enough to be shown.
func (v *view) value(p *Point, res *Result) (spread, bool) {
	m := spread{res.Wall.Median, res.Wall.Min, res.Wall.Max}
	if v.cpu {
		m = spread{res.CPU.Mean, res.CPU.Min, res.CPU.Max}
	}
	if len(res.Wall.Samples) == 0 || p.Operations == 0 || v.cpu && sum(res.CPU.Samples) < leastCPUShown {
		return spread{}, false
	}
	return v.of(p, m), true
}
