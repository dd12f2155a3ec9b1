package main

import (
	"fmt"

	"github.com/anishathalye/porcupine"
)

// What an entity is: a value with a version, or nothing. The version is 0 until somebody was told.
type state struct {
	value   string
	version int64
}

// {version: the value that it was seen with}
type versions map[int64]string

// What everybody was told of versions. An error if one of them was seen with two values.
func observed(calls []*call) (versions, error) {
	result := versions{}
	note := func(version int64, value string) error {
		if known, ok := result[version]; ok && known != value {
			return fmt.Errorf("version %d was seen with the values %s and %s", version, known, value)
		}
		if version != 0 {
			result[version] = value
		}
		return nil
	}
	for _, c := range calls {
		for _, s := range c.Seen {
			if err := note(s.Version, s.Value); err != nil {
				return nil, err
			}
		}
		if err := note(c.Version, c.Value); err != nil {
			return nil, err
		}
	}
	return result, nil
}

// Whether an entity in this state can have this version; 0 is nothing. The state that says so.
func (v versions) has(s state, version int64) (state, bool) {
	if version == 0 || s.value == "" {
		return s, version == 0 && s.value == ""
	}
	if s.version != 0 {
		return s, s.version == version
	}
	if value, ok := v[version]; ok && value != s.value {
		return s, false
	}
	return state{s.value, version}, true
}

// Whether an entity in this state can be read so.
func (v versions) reads(s state, told []seen) (state, bool) {
	if len(told) == 0 {
		return s, s.value == ""
	}
	if len(told) > 1 || told[0].Value != s.value {
		return s, false
	}
	return v.has(s, told[0].Version)
}

// Whether a write finds what it needs in this state.
func (v versions) applies(s state, c *call) (state, bool) {
	switch {
	case c.Expect != nil:
		return v.has(s, *c.Expect)
	case c.Verb == "update" && c.Seen != nil:
		return v.reads(s, c.Seen)
	case c.Verb == "update":
		// Its process was killed before it could say what it had read.
		return s, c.Default || s.value != ""
	}
	return s, true
}

// One call in this state: whether it can have gone so, and the state after it.
func (v versions) step(s state, c *call) (bool, state) {
	switch {
	case !c.writes():
		s, ok := v.reads(s, c.Seen)
		return ok, s
	case c.Outcome == "missing":
		return s.value == "", s
	case c.Outcome == "conflict":
		s, ok := v.has(s, c.Found)
		return ok && c.Found != *c.Expect, s
	}
	before, ok := v.applies(s, c)
	if !ok {
		// One that was not acknowledged may have done nothing.
		return c.unknown(), s
	}
	if c.Verb != "delete" {
		return true, state{c.Value, c.Version}
	}
	return c.unknown() || c.Existed == (before.value != ""), state{}
}

func (v versions) model() porcupine.Model {
	return porcupine.Model{
		Init: func() interface{} { return state{} },
		Step: func(s, input, output interface{}) (bool, interface{}) {
			ok, after := v.step(s.(state), input.(*call))
			return ok, after
		},
		DescribeOperation: func(input, output interface{}) string { return input.(*call).String() },
		DescribeState: func(s interface{}) string {
			if s.(state).value == "" {
				return "nothing"
			}
			return fmt.Sprintf("%s, version %d", s.(state).value, s.(state).version)
		},
	}
}
