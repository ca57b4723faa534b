package bench

import (
	"math"
	"strconv"

	"github.com/go-analyze/charts/chartdraw"
)

// axis is a scale of a plot. A logarithmic one has the logarithms as places: the library's own logarithmic range
// starts at 1.
type axis struct {
	log      bool
	low      float64 // where bars start
	ticks    []chartdraw.Tick
	min, max float64 // of places
}

// at is the place of a value.
func (a *axis) at(x float64) float64 {
	if a.log {
		x = math.Log10(max(x, math.SmallestNonzeroFloat64))
	}
	return min(max(x, a.min), a.max)
}

// decades is how far values may be apart on a linear axis, as a factor.
const decades = 100

// newAxis makes an axis for values from low to high; from 0, unless they spread over decades.
func newAxis(low, high float64) *axis {
	if low > 0 && high/low > decades {
		return logAxis(low, high)
	}
	if high <= 0 {
		high = 1
	}
	step := niceStep(high / 6)
	a := &axis{max: step * math.Ceil(high/step)}
	for i := range int(math.Round(a.max/step)) + 1 {
		x := float64(i) * step
		a.ticks = append(a.ticks, chartdraw.Tick{Value: x, Label: tickLabel(x)})
	}
	return a
}

// logAxis makes a logarithmic axis for values from low to high, both more than 0. Its ticks are 1, 2 and 5 in each
// decade, or where there are many the decades only.
func logAxis(low, high float64) *axis {
	digits := []float64{1, 2, 5}
	if high/low > 1e5 {
		digits = digits[:1]
	}
	a := &axis{log: true}
	for e := math.Floor(math.Log10(low)); ; e++ {
		for _, d := range digits {
			x := d * math.Pow(10, e)
			if x <= low*(1+1e-9) { // the last of those is the first tick
				a.ticks = a.ticks[:0]
			}
			a.ticks = append(a.ticks, chartdraw.Tick{Value: math.Log10(x), Label: tickLabel(x)})
			if x >= high*(1-1e-9) && len(a.ticks) > 1 {
				a.min, a.max = a.ticks[0].Value, math.Log10(x)
				a.low = math.Pow(10, a.min)
				return a
			}
		}
	}
}

// niceStep is the least of 1, 2 and 5 times a power of ten that is not below x.
func niceStep(x float64) float64 {
	power := math.Pow(10, math.Floor(math.Log10(x)))
	for _, d := range []float64{1, 2, 5} {
		if d*power >= x*(1-1e-9) {
			return d * power
		}
	}
	return 10 * power
}

// tickLabel writes a number with as many digits as it needs, and with commas between thousands.
func tickLabel(x float64) string {
	text := strconv.FormatFloat(x, 'g', 6, 64)
	if x < 1000 || x >= 1e15 {
		return text
	}
	text = strconv.FormatInt(int64(math.Round(x)), 10)
	for i := len(text) - 3; i > 0; i -= 3 {
		text = text[:i] + "," + text[i:]
	}
	return text
}
