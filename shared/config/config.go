// Package config reads the settings of a process from environment variables, into structs with the tags env, envDefault and help.
//
// Settings that must be equal in both containers have the tag shared:"true". The frontend compares their values with the
// signer's, and is not ready while they differ.
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

// Require returns nil if ok, and else a validation error with this text.
func Require(ok bool, format string, args ...any) error {
	if ok {
		return nil
	}
	return fmt.Errorf(format, args...)
}

const quotes = "\"'`“”„‘’"

var quotedForm = regexp.MustCompile("(?s)^[" + quotes + "].*[" + quotes + "]$")

// IsQuoted reports whether value begins and ends with a quotation mark.
func IsQuoted(value string) bool { return quotedForm.MatchString(value) }

// Parse sets the fields of settings, a pointer to a struct, from environ, which has the form of [os.Environ]. Fields that are
// structs without the tag env are parsed, too. An empty variable is treated as missing. The error contains all validation errors,
// joined; each names its variable.
//
// A value in quotes is an error: kustomize and docker do not remove quotes from files of settings. Fields with the tag
// quoted:"later" may be quoted; their owner validates them.
func Parse(settings any, environ []string) error {
	environment := env.ToMap(environ)
	maps.DeleteFunc(environment, func(_, value string) bool { return value == "" })
	variables := map[string]string{} // by field
	var faults []error
	for _, s := range Describe(settings) {
		variables[s.field.Name] = s.Name
		if value := environment[s.Name]; IsQuoted(value) && s.field.Tag.Get("quoted") != "later" {
			faults = append(faults, fmt.Errorf("%s is %s, in quotes, which are part of the value: remove the quotes", s.Name, value))
			environment[s.Name] = strings.Trim(value, quotes) // otherwise it would be reported again
		}
	}
	err := env.ParseWithOptions(settings, env.Options{Environment: environment})
	all, ok := errors.AsType[env.AggregateError](err)
	if !ok {
		return errors.Join(append(faults, err)...)
	}
	for _, fault := range all.Errors {
		if parse, ok := errors.AsType[env.ParseError](fault); ok { // it names the field
			name := variables[parse.Name]
			fault = fmt.Errorf("%s is %q: %w", name, environment[name], parse.Err)
		}
		faults = append(faults, fault)
	}
	return errors.Join(faults...)
}

// Setting is a field of a struct of settings, and the environment variable that sets it.
type Setting struct {
	Name  string // of the variable
	field reflect.StructField
	value reflect.Value
}

// shared reports whether the setting must be equal in both containers.
func (s Setting) shared() bool { return s.field.Tag.Get("shared") == "true" }

// Describe returns the settings in settings, a struct or a pointer to one, in the order of its fields.
func Describe(settings any) (list []Setting) {
	for f, v := range reflect.Indirect(reflect.ValueOf(settings)).Fields() {
		if tag, ok := f.Tag.Lookup("env"); ok {
			name, _, _ := strings.Cut(tag, ",")
			list = append(list, Setting{name, f, v})
		} else if f.Type.Kind() == reflect.Struct {
			list = append(list, Describe(v.Interface())...)
		}
	}
	return list
}

// Shared returns the values of the settings with the tag shared:"true", by name. Equal values have equal strings: numbers are
// exact, and lists are sorted.
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
	if v.CanInt() { // the String method of a size rounds
		return strconv.FormatInt(v.Int(), 10)
	}
	return fmt.Sprint(v)
}

// Help writes the output of --help: about, then each setting with its default.
func Help(w io.Writer, about string, settings any) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n\nFlags: --help, --version. Settings, as environment variables:\n", about)
	for _, s := range Describe(settings) {
		tag, suffix := s.field.Tag, ""
		fmt.Fprintf(&b, "\n  %s", s.Name)
		if strings.HasSuffix(tag.Get("env"), ",required") {
			b.WriteString(" (required)")
		} else if value := tag.Get("envDefault"); value != "" {
			fmt.Fprintf(&b, "=%s", value)
		}
		if s.shared() {
			suffix = "; must be equal in both containers"
		}
		fmt.Fprintf(&b, "\n      %s%s\n", tag.Get("help"), suffix)
	}
	_, err := io.WriteString(w, b.String())
	return err
}
