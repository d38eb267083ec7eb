// Package config reads the settings of a process from its environment.
package config

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/caarlos0/env/v11"
)

// Require returns a validation error with that text unless ok.
func Require(ok bool, format string, args ...any) error {
	if ok {
		return nil
	}
	return fmt.Errorf(format, args...)
}

// Parse fills settings, a pointer to a struct whose fields have the tags env,
// envDefault and help, from environ ("NAME=value" each). Its
// fields that are structs without these tags are read in the same way. An empty variable counts as absent. All faults are in the
// error, joined, each naming its variable. A value in quotes is one, except for a field with the tag quoted:"later":
// kustomize and docker read files of settings literally, so that quotes in them become part of the value.
func Parse(settings any, environ []string) error {
	environment := env.ToMap(environ)
	maps.DeleteFunc(environment, func(_, value string) bool { return value == "" })
	variables := map[string]string{} // by field
	var faults []error
	for _, s := range Describe(settings) {
		variables[s.field.Name] = s.Name
		if value := environment[s.Name]; IsQuoted(value) && s.field.Tag.Get("quoted") != "later" {
			faults = append(faults, fmt.Errorf("%s is %s, in quotes, which are part of the value: remove the quotes", s.Name, value))
			environment[s.Name] = strings.Trim(value, quotes) // reported once
		}
	}
	err := env.ParseWithOptions(settings, env.Options{Environment: environment})
	all, ok := errors.AsType[env.AggregateError](err)
	if !ok {
		return errors.Join(append(faults, err)...)
	}
	for _, fault := range all.Errors {
		// The library names the field; people know the variable.
		if parse, ok := errors.AsType[env.ParseError](fault); ok {
			name := variables[parse.Name]
			fault = fmt.Errorf("%s is %q: %w", name, environment[name], parse.Err)
		}
		faults = append(faults, fault)
	}
	return errors.Join(faults...)
}

const quotes = "\"'`“”„‘’"

var quotedForm = regexp.MustCompile("(?s)^[" + quotes + "].*[" + quotes + "]$")

// IsQuoted reports whether value begins and ends with a quotation mark.
func IsQuoted(value string) bool { return quotedForm.MatchString(value) }

// Setting describes one environment variable.
type Setting struct {
	Name     string
	Default  string // "" when there is none
	Required bool
	Help     string

	field reflect.StructField
	value reflect.Value
}

// shared reports whether the setting must be the same in both containers.
func (s Setting) shared() bool { return s.field.Tag.Get("shared") == "true" }

// Describe lists the settings in settings, which is what [Parse] takes, in the order of the fields.
func Describe(settings any) []Setting {
	var list []Setting
	for f, v := range reflect.Indirect(reflect.ValueOf(settings)).Fields() {
		tag, ok := f.Tag.Lookup("env")
		switch {
		case ok:
			name, options, _ := strings.Cut(tag, ",")
			s := Setting{Name: name, Default: f.Tag.Get("envDefault"), Required: options == "required", Help: f.Tag.Get("help"), field: f, value: v}
			if s.shared() {
				s.Help += "; the same in both containers"
			}
			list = append(list, s)
		case f.Type.Kind() == reflect.Struct:
			list = append(list, Describe(v.Interface())...)
		}
	}
	return list
}

// Shared returns the values of the settings with the tag shared:"true", which must be the same in both containers, by name.
// Equal values have equal strings: numbers are exact and lists of strings are sorted.
func Shared(settings any) map[string]string {
	values := map[string]string{}
	for _, s := range Describe(settings) {
		if s.shared() {
			values[s.Name] = canonical(s.value)
		}
	}
	return values
}

func canonical(v reflect.Value) string {
	if list, ok := reflect.TypeAssert[[]string](v); ok {
		return strings.Join(slices.Compact(slices.Sorted(slices.Values(list))), ",")
	}
	if v.CanInt() { // sizes print rounded
		return strconv.FormatInt(v.Int(), 10)
	}
	return fmt.Sprint(v)
}

// Help writes what --help shows: about, then each setting with its default.
func Help(w io.Writer, about string, settings any) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n\nFlags: --help, --version. Settings, from the environment:\n", about)
	for _, s := range Describe(settings) {
		fmt.Fprintf(&b, "\n  %s", s.Name)
		switch {
		case s.Required:
			b.WriteString(" (required)")
		case s.Default != "":
			fmt.Fprintf(&b, "=%s", s.Default)
		}
		fmt.Fprintf(&b, "\n      %s\n", s.Help)
	}
	_, err := io.WriteString(w, b.String())
	return err
}
