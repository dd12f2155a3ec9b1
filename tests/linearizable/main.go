// Judge says of each entity whether the histories of its calls are linearizable. Porcupine decides.
//
//	judge [-pictures DIRECTORY] FILE …
//
// Each line of a file is the begin or the end of a call, in JSON: see client.py, which writes them. A call takes effect
// once, between its begin and its end. One that raised Unknown, or was killed, takes effect once after its begin, or
// never. One that raised anything else never does; it is "failed", and left out.
//
// The exit status is 0 if all are linearizable, 1 if not, 2 if the files cannot be read.
package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"time"

	"github.com/anishathalye/porcupine"
)

const (
	patience  = time.Minute // for one question to Porcupine
	shown     = 25          // calls before the one that fits nowhere
	explained = 3           // entities whose calls are printed
)

func main() {
	pictures := flag.String("pictures", "", "a directory for a picture of each history that is not linearizable")
	flag.Parse()
	histories, err := read(flag.Args())
	if err == nil && len(histories) == 0 {
		err = fmt.Errorf("there is no call in %q", flag.Args())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "judge:", err)
		os.Exit(2)
	}
	ids := make([]string, 0, len(histories))
	for id := range histories {
		ids = append(ids, id)
	}
	sort.Strings(ids)
	status, bad := 0, 0
	for _, id := range ids {
		verdict := judge(histories[id])
		fmt.Printf("%s: %s\n", id, verdict.text(histories[id]))
		if verdict.result != porcupine.Ok {
			status = 1
		}
		if verdict.result == porcupine.Illegal && bad < explained {
			bad++
			explain(id, histories[id], verdict, *pictures)
		}
	}
	os.Exit(status)
}

type verdict struct {
	result porcupine.CheckResult
	reason string
	model  porcupine.Model
	info   porcupine.LinearizationInfo
}

func (v verdict) text(calls []*call) string {
	unknown := 0
	for _, c := range calls {
		if c.unknown() {
			unknown++
		}
	}
	words := map[porcupine.CheckResult]string{
		porcupine.Ok:      "linearizable",
		porcupine.Illegal: "NOT LINEARIZABLE",
		porcupine.Unknown: "UNDECIDED",
	}
	return fmt.Sprintf("%s (%d calls, %d of unknown outcome)%s", words[v.result], len(calls), unknown, v.reason)
}

// Porcupine's verdict on the calls of one entity.
func judge(calls []*call) verdict {
	known, err := observed(calls)
	if err != nil {
		return verdict{result: porcupine.Illegal, reason: ": " + err.Error()}
	}
	calls = bound(calls)
	end := never(calls)
	var certain []*call
	for _, c := range calls {
		if c.End < end {
			certain = append(certain, c)
		}
	}
	// Most calls of unknown outcome that nobody has seen the effect of had none, and the search is short without them.
	found := ask(known, certain)
	if found.result != porcupine.Ok && len(certain) < len(calls) {
		found = ask(known, calls)
	}
	return found
}

// Behind all ends.
func never(calls []*call) int64 {
	last := int64(0)
	for _, end := range ends(calls) {
		last = max(last, end)
	}
	return last + 1
}

func ask(known versions, calls []*call) verdict {
	end := never(calls)
	operations := make([]porcupine.Operation, len(calls))
	clients := map[string]int{}
	for i, c := range calls {
		client := c.Call[:strings.LastIndex(c.Call, "/")+1]
		if _, ok := clients[client]; !ok {
			clients[client] = len(clients)
		}
		operations[i] = porcupine.Operation{
			ClientId: clients[client], Input: c, Call: c.Begin, Return: max(min(c.End, end), c.Begin),
		}
	}
	model := known.model()
	result, info := porcupine.CheckOperationsVerbose(model, operations, patience)
	return verdict{result: result, model: model, info: info}
}

// Prints the last calls of the shortest beginning of the history that is not linearizable, and draws all of it.
func explain(id string, calls []*call, found verdict, pictures string) {
	moments := ends(calls)
	shortest := sort.Search(len(moments)-1, func(n int) bool {
		return judge(until(calls, moments[n])).result == porcupine.Illegal
	})
	moment := moments[shortest]
	var before []*call
	for _, c := range calls {
		if c.Begin <= moment {
			before = append(before, c)
		}
	}
	// A call of unknown outcome may matter long after its begin, where its value was seen.
	sort.SliceStable(before, func(i, j int) bool { return before[i].Begin < before[j].Begin })
	fmt.Println("  Milliseconds before it became so, and the calls until then:")
	for i, c := range before {
		if i >= len(before)-shown || c.unknown() {
			fmt.Printf("  %s\n", line(c, moment))
		}
	}
	if pictures == "" || found.reason != "" {
		return
	}
	path := filepath.Join(pictures, id+".html")
	if err := porcupine.VisualizePath(found.model, found.info, path); err != nil {
		fmt.Fprintln(os.Stderr, "judge:", err)
		os.Exit(2)
	}
	fmt.Printf("  All of it is drawn in %s\n", path)
}

// A call with its times in milliseconds, counted from the moment at which the history is no more linearizable.
func line(c *call, moment int64) string {
	milliseconds := func(at int64) float64 { return float64(at-moment) / 1e6 }
	end := "?"
	if !c.unknown() {
		end = fmt.Sprintf("%.3f", milliseconds(c.End))
	}
	mark := ""
	if c.End == moment {
		mark = "   <- fits nowhere"
	}
	return fmt.Sprintf("%12.3f … %8s  %s: %s%s", milliseconds(c.Begin), end, c.Call, c, mark)
}
