package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"sort"
)

// A call of a client, from the line that was written before it and the line that was written behind it.
type call struct {
	Call    string `json:"call"` // its name
	ID      string `json:"id"`   // the entity's
	Verb    string `json:"verb"`
	Value   string `json:"value"`   // what it stores
	Expect  *int64 `json:"expect"`  // the version that it replaces
	Default bool   `json:"default"` // whether an update stores something where nothing is
	Begin   int64  `json:"begin"`   // nanoseconds

	End     int64  `json:"end"`
	Outcome string `json:"outcome"` // "done", "conflict", "missing", "unknown", "failed"
	Seen    []seen `json:"seen"`    // what it read: an empty list if there was no entity
	Found   int64  `json:"found"`   // the version that is the conflict
	Existed bool   `json:"existed"` // what delete has returned
	Version int64  `json:"version"` // of what it has stored, if it was told
}

// What a client was told of an entity.
type seen struct {
	Value   string `json:"value"`
	Version int64  `json:"version"`
}

// Whether it may have taken effect at any time after its begin, or never.
func (c *call) unknown() bool { return c.Outcome == "unknown" }

func (c *call) writes() bool { return c.Verb != "get" && c.Verb != "get_all" }

func (c *call) String() string {
	text := c.Verb + "("
	if c.Value != "" {
		text += c.Value
	}
	if c.Expect != nil {
		text += fmt.Sprintf(" over version %d", *c.Expect)
	}
	text += ") " + c.Outcome
	switch {
	case c.Outcome == "conflict":
		text += fmt.Sprintf(": version %d was found", c.Found)
	case c.Verb == "delete" && c.Outcome == "done":
		text += fmt.Sprintf(": %v", c.Existed)
	case c.Seen != nil && len(c.Seen) == 0:
		text += ": saw nothing"
	case c.Seen != nil:
		for _, s := range c.Seen {
			text += fmt.Sprintf(": saw %s, version %d", s.Value, s.Version)
		}
	}
	if c.Version != 0 {
		text += fmt.Sprintf(", and made version %d", c.Version)
	}
	return text
}

// The calls of all files that may have had an effect or were told something, by the entity's id.
func read(paths []string) (map[string][]*call, error) {
	byName := map[string]*call{}
	var inOrder []*call
	for _, path := range paths {
		file, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		defer file.Close()
		lines := bufio.NewScanner(file)
		for number := 1; lines.Scan(); number++ {
			line := &call{}
			if err := json.Unmarshal(lines.Bytes(), line); err != nil {
				return nil, fmt.Errorf("%s, line %d: %w", path, number, err)
			}
			known := byName[line.Call]
			if (known == nil) != (line.Begin != 0) || known != nil && known.Outcome != "" {
				return nil, fmt.Errorf("%s, line %d: not one begin and one end of %q", path, number, line.Call)
			}
			if known == nil {
				byName[line.Call] = line
				inOrder = append(inOrder, line)
			} else if err := json.Unmarshal(lines.Bytes(), known); err != nil {
				return nil, err
			}
		}
		if err := lines.Err(); err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
	}
	byID := map[string][]*call{}
	for _, c := range inOrder {
		if c.Outcome == "" {
			// Its process was killed.
			c.Outcome = "unknown"
		}
		if c.Outcome != "failed" && (c.writes() || !c.unknown()) {
			byID[c.ID] = append(byID[c.ID], c)
		}
	}
	return byID, nil
}

// When a call of unknown outcome must have taken effect at last, if it did: before whoever saw its value returned.
// Calls of known outcome keep the end that they have.
func bound(calls []*call) []*call {
	first := map[string]int64{}
	for _, c := range calls {
		for _, s := range c.Seen {
			if end, ok := first[s.Value]; !c.unknown() && (!ok || c.End < end) {
				first[s.Value] = c.End
			}
		}
	}
	result := make([]*call, len(calls))
	for i, c := range calls {
		copied := *c
		if c.unknown() {
			copied.End = math.MaxInt64
			if end, ok := first[c.Value]; ok && c.Value != "" {
				copied.End = end
			}
		}
		result[i] = &copied
	}
	return result
}

// The history as it was known at a moment: what had not ended by then is unknown, what had not begun is not there.
func until(calls []*call, moment int64) []*call {
	var result []*call
	for _, c := range calls {
		if c.Begin > moment {
			continue
		}
		copied := *c
		if !c.unknown() && c.End > moment {
			copied.Outcome, copied.Seen, copied.Version = "unknown", nil, 0
		}
		if copied.writes() || !copied.unknown() {
			result = append(result, &copied)
		}
	}
	return result
}

// The moments at which something became known.
func ends(calls []*call) []int64 {
	var result []int64
	for _, c := range calls {
		if !c.unknown() {
			result = append(result, c.End)
		}
	}
	sort.Slice(result, func(i, j int) bool { return result[i] < result[j] })
	return result
}
