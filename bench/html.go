package bench

import (
	"bytes"
	"fmt"
	"html"
	"io"
	"strings"
)

// WriteHTML writes the report as one page, with plots, that needs nothing else.
func (r *Report) WriteHTML(w io.Writer) error {
	plots, err := r.plots()
	if err != nil {
		return err
	}
	var out bytes.Buffer
	title := html.EscapeString("Ways to mount " + r.Image.Name)
	fmt.Fprintf(&out, htmlHead, title, title)
	r.facts(&out)
	for _, p := range plots {
		fmt.Fprintf(&out, "<figure>%s</figure>\n", p.svg)
	}
	if len(r.Rows) > 0 {
		out.WriteString("<h2>Figures</h2>\n")
		r.htmlTable(&out, "Seconds: median [fastest–slowest], ratio", r.Rows, func(res *Result) string { return seconds(res.Wall) }, func(res *Result) float64 { return res.Wall.Ratio })
		r.htmlTable(&out, "CPU seconds of the machine: mean, ratio", r.Rows, func(res *Result) string { return digits(res.CPU.Mean) }, func(res *Result) float64 { return res.CPU.Ratio })
		r.htmlTable(&out, "CPU seconds for each GiB read: mean", r.readers(), func(res *Result) string { return digits(res.CPUPerGiB) }, nil)
	}
	out.WriteString("</body>\n</html>\n")
	_, err = w.Write(out.Bytes())
	return err
}

const htmlHead = `<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>%s</title>
<style>
body { font-family: sans-serif; color: #333; max-width: 1280px; margin: 2em auto; padding: 0 1em; line-height: 1.4 }
figure { max-width: 1040px; margin: 1.5em 0; border: 1px solid #ddd }
figure svg { display: block; width: 100%%; height: auto }
table { border-collapse: collapse; margin: 1em 0 2em; font-size: 80%%; display: block; overflow-x: auto }
caption { text-align: left; font-weight: bold; padding: 0.3em 0 }
th, td { text-align: left; padding: 0.2em 0.7em 0.2em 0; border-bottom: 1px solid #ddd; white-space: nowrap }
td.r { padding-right: 1.4em }
dt { font-weight: bold; float: left; clear: left; width: 9em }
dd { margin-left: 9em }
code { font-size: 90%% }
.bad { color: #a00 }
</style>
</head>
<body>
<h1>%s</h1>
`

// facts writes what was measured, where and how.
func (r *Report) facts(w io.Writer) {
	fact := func(name, format string, args ...any) {
		fmt.Fprintf(w, "<dt>%s</dt><dd>%s</dd>\n", name, html.EscapeString(fmt.Sprintf(format, args...)))
	}
	fmt.Fprintln(w, "<dl>")
	fact("Image", "%s", r.Image)
	if r.File.Path != "" {
		fact("One file", "%s, %s", r.File.Path, size(r.File.Bytes))
	}
	fact("Machine", "%s, %s, %s of memory", r.Machine, r.Machine.Architecture, size(r.Machine.MemoryBytes))
	fact("Measured", "%s, as %s, %s, in turns; CPU time from %s", r.Time, r.who(), plural(r.Rounds, "round"), r.CPUSource)
	if len(r.Command) > 0 {
		fact("Command", "%s", quoted(r.Command))
	}
	for _, p := range r.Peers {
		fact("Peer", "%s", peerFact(p))
	}
	fmt.Fprintln(w, "</dl>")
	if r.Interrupted {
		fmt.Fprintf(w, "<p class=\"bad\">%s</p>\n", notAll)
	}
	for _, l := range r.LeftOut {
		fmt.Fprintf(w, "<p>%s</p>\n", html.EscapeString(l))
	}
	for _, f := range r.Failures {
		fmt.Fprintf(w, "<p class=\"bad\">FAILED %s</p>\n", html.EscapeString(f))
	}
}

func peerFact(p PeerInfo) string {
	text := p.Name
	if p.Version != "" {
		text += ", " + p.Version
	}
	if len(p.Command) == 0 {
		return text + ": the image unpacked; before a cold run the pages of its files are dropped, and come back from the disk"
	}
	return text + ": " + quoted(p.Command)
}

// quoted is a command line that a shell understands as it was.
func quoted(words []string) string {
	line := make([]string, len(words))
	for i, w := range words {
		if line[i] = w; w == "" || strings.ContainsAny(w, " \t\n'\"\\$`*?[]#~&|;<>(){}!") {
			line[i] = "'" + strings.ReplaceAll(w, "'", `'\''`) + "'"
		}
	}
	return strings.Join(line, " ")
}

// htmlTable writes a table; ratio may be nil.
func (r *Report) htmlTable(w io.Writer, title string, rows []Row, figure func(*Result) string, ratio func(*Result) float64) {
	if len(rows) == 0 {
		return
	}
	span := 1
	if ratio != nil {
		span = 2
	}
	fmt.Fprintf(w, "<table><caption>%s</caption>\n<tr><th></th>", html.EscapeString(title))
	for _, p := range r.Peers {
		fmt.Fprintf(w, `<th colspan="%d">%s</th>`, span, html.EscapeString(p.Name))
	}
	fmt.Fprintln(w, "</tr>")
	for i := range rows {
		fmt.Fprintf(w, "<tr><th>%s</th>", html.EscapeString(rows[i].Name()))
		for j := range rows[i].Results {
			res := &rows[i].Results[j]
			text := "–"
			if len(res.Wall.Samples) > 0 {
				text = figure(res)
			}
			fmt.Fprintf(w, "<td>%s</td>", text)
			if ratio != nil {
				fmt.Fprintf(w, `<td class="r">%s</td>`, r.ratio(res, ratio(res)))
			}
		}
		fmt.Fprintln(w, "</tr>")
	}
	fmt.Fprintln(w, "</table>")
}

// svgMargin is the space around and between plots of one picture.
const svgMargin = 20

// WriteSVG writes the plots as one picture, below each other.
func (r *Report) WriteSVG(w io.Writer) error {
	plots, err := r.plots()
	if err != nil {
		return err
	}
	head := []string{"Ways to mount " + r.Image.Name, r.Image.String(), fmt.Sprintf("%s; as %s, %s, %s", r.Machine, r.who(), plural(r.Rounds, "round"), r.Time)}
	if r.Interrupted {
		head = append(head, notAll)
	}
	var body bytes.Buffer
	y := svgMargin
	for i, text := range head {
		px := 14
		if i == 0 {
			px = 22
		}
		y += px + 6
		fmt.Fprintf(&body, `<text x="%d" y="%d" style="font-family:sans-serif;font-size:%dpx;fill:#333">%s</text>`+"\n", svgMargin, y, px, html.EscapeString(text))
	}
	y += svgMargin
	for _, p := range plots {
		place := fmt.Sprintf(`<svg x="%d" y="%d" width="%d" height="%d" `, svgMargin, y, p.width, p.height)
		body.Write(bytes.Replace(p.svg, []byte("<svg "), []byte(place), 1))
		body.WriteByte('\n')
		y += p.height + svgMargin
	}
	width := plotWidth + 2*svgMargin
	_, err = fmt.Fprintf(w, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d">`+"\n"+
		`<rect width="100%%" height="100%%" fill="#f4f4f4"/>`+"\n%s</svg>\n", width, y, width, y, &body)
	return err
}
