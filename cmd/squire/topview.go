package main

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/text"
)

// topView is what top shows: an interval, and how.
type topView struct {
	now     time.Time
	delay   time.Duration
	what    *interval // nil: nothing is known yet
	trouble string    // why there is nothing newer, or nothing at all

	sort    int // of topColumns
	reverse bool
	skip    int // rows of images that are above the screen
}

// topColumn is a column of the table of images. order is by what it is sorted, the largest first.
type topColumn struct {
	title string
	width int // 0: what is left
	spare int // which goes first where there is no room; 0: none
	value func(*imageRates) string
	order func(a, b *imageRates) int
}

// rateColumn is a column of numbers.
func rateColumn(title string, width, spare int, number func(*imageRates) float64, form func(float64) string) topColumn {
	return topColumn{
		title: title, width: width, spare: spare,
		value: func(x *imageRates) string { return form(number(x)) },
		order: func(a, b *imageRates) int { return cmp.Compare(number(a), number(b)) }, // NaN is less than any
	}
}

// bytesColumn is a column of bytes a second.
func bytesColumn(title string, spare int, bytes func(*imageRates) uint64) topColumn {
	return rateColumn(title, 9, spare, func(x *imageRates) float64 { return x.rates.per(bytes(x)) }, bytesRate)
}

// timeColumn is a column of a quantile of the requests' times.
func timeColumn(title string, spare int, q float64) topColumn {
	return rateColumn(title, 6, spare, func(x *imageRates) float64 {
		if x.rates.latency.Count() == 0 {
			return math.NaN()
		}
		return float64(x.rates.latency.Quantile(q))
	}, func(f float64) string {
		if math.IsNaN(f) {
			return "-"
		}
		return shortTime(time.Duration(f))
	})
}

var topColumns = []topColumn{
	{
		title: "ID", width: 8,
		value: func(x *imageRates) string { return x.service.id(x.image) },
		order: func(a, b *imageRates) int { return cmp.Compare(b.image.ID, a.image.ID) },
	},
	rateColumn("REFS", 5, 5, func(x *imageRates) float64 { return float64(x.image.References) }, countRate),
	rateColumn("REQ/S", 6, 0, func(x *imageRates) float64 { return x.rates.per(requestCount(&x.rates.Stats)) }, countRate),
	timeColumn("P50", 4, 0.5),
	timeColumn("P99", 0, 0.99),
	rateColumn("HITS", 6, 0, func(x *imageRates) float64 { return x.rates.hitRate() }, share),
	bytesColumn("STORAGE/S", 0, func(x *imageRates) uint64 { return x.rates.Storage }),
	bytesColumn("DECODED/S", 2, func(x *imageRates) uint64 { return x.rates.DecodedBytes }),
	bytesColumn("SERVED/S", 0, func(x *imageRates) uint64 { return x.rates.ReadBytes }),
	bytesColumn("AHEAD/S", 1, func(x *imageRates) uint64 { return x.rates.Stored }),
	rateColumn("ERR", 4, 6, func(x *imageRates) float64 { return float64(x.image.Stats.Errors) }, countRate),
	{
		title: "STATE", width: 8, spare: 3,
		value: func(x *imageRates) string { return shownWord(x.image.State) },
		order: func(a, b *imageRates) int { return cmp.Compare(b.image.State, a.image.State) },
	},
	{
		title: "IMAGE",
		value: func(x *imageRates) string { return shownPath(x.image.Name) },
		order: func(a, b *imageRates) int { return cmp.Compare(b.image.Name, a.image.Name) },
	},
}

// minName is how many columns of a terminal the name of an image should have.
const minName = 24

// columns are those for which there is room, and the one that is sorted by.
func (v *topView) columns(width int) []*topColumn {
	var shown []*topColumn
	used := minName
	for i := range topColumns {
		shown = append(shown, &topColumns[i])
		used += topColumns[i].width + 1
	}
	for spare := 1; spare < len(topColumns) && width > 0 && used > width; spare++ {
		shown = slices.DeleteFunc(shown, func(c *topColumn) bool {
			if c.spare != spare || c == &topColumns[v.sort] {
				return false
			}
			used -= c.width + 1
			return true
		})
	}
	return shown
}

// topSorts names what can be sorted by: the columns, in small letters and without "/s".
func topSorts() (names []string) {
	for _, c := range topColumns {
		names = append(names, strings.TrimSuffix(strings.ToLower(c.title), "/s"))
	}
	return names
}

// lines draws the view for a terminal, or, with height 0, for a file. None is longer than width, unless that is 0.
func (v *topView) lines(width, height int) []string {
	lines := v.head()
	if v.what != nil {
		lines = append(lines, v.operations()...)
	}
	end := 0
	if height > 0 {
		end = 1 // the keys
	}
	var table []string
	if v.what != nil && len(v.what.images) > 0 {
		lines = append(lines, "")
		table = v.images(width)
		if height > 0 {
			table = v.part(table, height-end-len(lines))
		}
	}
	lines = append(lines, table...)
	if height > 0 {
		lines = lines[:min(len(lines), max(height-end, 0))]
		for len(lines) < height-end {
			lines = append(lines, "")
		}
		lines = append(lines, "q quit   < > sort by   r reverse   up, down: more images")
	}
	if width > 0 {
		for i, line := range lines {
			lines[i] = fitted(line, width)
		}
	}
	return lines
}

// fitted shortens a line to so many columns of a terminal.
func fitted(s string, width int) string {
	if text.StringWidthWithoutEscSequences(s) <= width {
		return s
	}
	return text.Trim(s, width)
}

// head says when, what services there are, and what they do altogether.
func (v *topView) head() []string {
	lines := []string{fmt.Sprintf("squire top, %s, every %v, by %s", v.now.Format("15:04:05"), v.delay, topColumns[v.sort].title)}
	if v.trouble != "" {
		lines = append(lines, v.trouble)
	}
	if v.what == nil {
		return lines
	}
	for _, s := range v.what.services {
		line := fmt.Sprintf("%s service %s, pid %d, up %s%s: %s, %s", s.Service, shownWord(s.Version), s.PID,
			age(v.now.Sub(s.Since)), condition(s.seen), plural(int64(len(s.Images)), "image"), plural(int64(s.Clients), "client"))
		if s.Totals != nil { // others are not told
			line += fmt.Sprintf(", memory %s, cache %s of %s, restarts %d+%d",
				sizeString(s.Memory), sizeString(s.Cache.Bytes), sizeString(s.Cache.Budget), s.Restarts.Server, s.Restarts.Mounter)
		}
		lines = append(lines, line)
	}
	r := &v.what.sum
	return append(lines, fmt.Sprintf("a second: %s requests, hits %s, storage %s, decoded %s, served %s, ahead %s, errors %s",
		countRate(r.per(requestCount(&r.Stats))), share(r.hitRate()), bytesRate(r.per(r.Storage)),
		bytesRate(r.per(r.DecodedBytes)), bytesRate(r.per(r.ReadBytes)), bytesRate(r.per(r.Stored)), countRate(r.per(r.Errors))))
}

// operations is the table of kinds of requests: of all that there ever were, so that lines stay where they are.
func (v *topView) operations() []string {
	var ever figures
	for _, s := range v.what.services {
		f := totals(s.seen)
		ever.add(&f.Stats, 0)
	}
	kinds := operationsOf(&ever.Stats)
	if len(kinds) == 0 {
		return nil
	}
	r := &v.what.sum
	lines := []string{"", fmt.Sprintf("%-9s %7s %7s %7s %7s %7s", "OPERATION", "REQ/S", "P50", "P90", "P99", "MAX")}
	for _, op := range kinds {
		h := r.Latency[op]
		lines = append(lines, fmt.Sprintf("%-9s %7s %7s %7s %7s %7s", shownWord(op), countRate(r.per(requestsOf(&r.Stats, op))),
			quantile(&h, 0.5), quantile(&h, 0.9), quantile(&h, 0.99), quantile(&h, 1)))
	}
	return lines
}

// images is the table of images: titles, then a line each.
func (v *topView) images(width int) []string {
	by := topColumns[v.sort].order
	images := slices.Clone(v.what.images)
	slices.SortStableFunc(images, func(a, b imageRates) int {
		n := by(&b, &a)
		if v.reverse {
			n = -n
		}
		return cmp.Or(n, cmp.Compare(a.image.ID, b.image.ID))
	})
	columns := v.columns(width)
	lines := []string{row(columns, width, func(c *topColumn) string { return c.title })}
	for i := range images {
		lines = append(lines, row(columns, width, func(c *topColumn) string { return c.value(&images[i]) }))
	}
	return lines
}

// row is a line of columns. The name of an image, the last, is cut at its beginning: it is the end that tells images
// from each other.
func row(columns []*topColumn, width int, value func(*topColumn) string) string {
	var b strings.Builder
	used := 0
	for i, c := range columns {
		s := value(c)
		switch {
		case c.width == 0:
			s = tail(s, width, used)
			b.WriteString(s)
		case i == 0 || c.title == "STATE":
			b.WriteString(text.AlignLeft.Apply(s, c.width) + " ")
		default:
			b.WriteString(text.AlignRight.Apply(s, c.width) + " ")
		}
		used += max(c.width, text.StringWidthWithoutEscSequences(s)) + 1
	}
	return strings.TrimRight(b.String(), " ")
}

// tail is as much of the end of a string as there is room for, where that is worth it.
func tail(s string, width, used int) string {
	const least = 8
	room := width - used
	if width <= 0 || room < least || text.StringWidthWithoutEscSequences(s) <= room {
		return s
	}
	runes := []rune(s)
	for len(runes) > 0 && text.StringWidthWithoutEscSequences(string(runes)) > room-1 {
		runes = runes[1:]
	}
	return "…" + string(runes)
}

// part is what of a table fits so many lines, from v.skip on, which it brings within bounds.
func (v *topView) part(table []string, lines int) []string {
	v.skip = max(min(v.skip, len(table)-max(lines, 2)), 0)
	return append(table[:1:1], table[1+v.skip:]...)
}

// bytesRate, countRate and share write what is known as a number; "-" is what is not.
func bytesRate(f float64) string {
	if math.IsNaN(f) {
		return "-"
	}
	return sizeString(int64(min(f, 1<<62)))
}

func countRate(f float64) string {
	switch {
	case math.IsNaN(f):
		return "-"
	case f < 9.95 && f != math.Trunc(f):
		return fmt.Sprintf("%.1f", f)
	case f < 99999.5:
		return fmt.Sprintf("%.0f", f)
	case f < 9.995e6:
		return fmt.Sprintf("%.0fk", f/1e3)
	}
	return fmt.Sprintf("%.0fM", f/1e6)
}

func share(f float64) string {
	if math.IsNaN(f) {
		return "-"
	}
	return fmt.Sprintf("%.1f%%", 100*f)
}
