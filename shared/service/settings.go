// Package service is the process shell that both containers share: settings,
// logs, metrics, the ops listener, and an orderly start and stop.
package service

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/caarlos0/env/v11"
)

// Settings are those that every process of the pod has. Embed them in the
// process's own settings, for [Parse].
type Settings struct {
	StallTimeout time.Duration `env:"STALL_TIMEOUT" envDefault:"30s" help:"a request body that brings less than MIN_UPLOAD_RATE over this long is rejected"`
	MinRate      int64         `env:"MIN_UPLOAD_RATE" envDefault:"2048" help:"the minimum rate of a request body, in bytes per second, averaged over STALL_TIMEOUT; 16384 while more than half of MAX_UPLOADS are in progress"`
	MaxUploads   int           `env:"MAX_UPLOADS" envDefault:"128" help:"uploads in progress at once. Half as many commits of direct uploads, four times as many requests and eight times as many connections are possible"`
	ClientShare  float64       `env:"CLIENT_SHARE" envDefault:"0.0625" help:"the part of MAX_UPLOADS, and of the other limits that follow from it, that one client may take, at least 1: the frontend counts by address (IPv6: /56), the signer by authenticated caller; 0 for no shares"`
	AllowedHosts []HostName    `env:"ALLOWED_HOSTS" help:"host names, separated by commas, that requests may have in their Host header; others are answered 421. IP addresses and localhost are always accepted; any host unless set"`
	Profile      bool          `env:"PROFILE" envDefault:"false" help:"true serves Go profiles at /debug/pprof/ on the ops listener"`
	DrainDelay   time.Duration `env:"DRAIN_DELAY" envDefault:"0s" help:"after SIGTERM, how long to go on serving while not ready, so that load balancers notice"`
	DrainTimeout time.Duration `env:"DRAIN_TIMEOUT" envDefault:"60s" help:"how long requests under way may then take before they are cut off"`
	LogLevel     slog.Level    `env:"LOG_LEVEL" envDefault:"info" help:"debug, info, warn or error"`
}

// Validate reports the faults of the settings, joined.
func (s Settings) Validate() error {
	return errors.Join(
		Require(s.StallTimeout > 0, "STALL_TIMEOUT is %v: it must be above zero", s.StallTimeout),
		Require(s.MinRate > 0 && s.MaxUploads > 0, "MIN_UPLOAD_RATE and MAX_UPLOADS must be above zero"),
		// This comparison rejects NaN, too.
		Require(s.ClientShare >= 0 && s.ClientShare <= 1, "CLIENT_SHARE is %v: want a number from 0 to 1, such as 0.0625; 0 for no shares", s.ClientShare),
		Require(s.DrainDelay >= 0 && s.DrainTimeout > 0, "DRAIN_DELAY must not be negative, DRAIN_TIMEOUT must be above zero"),
	)
}

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
		if value := environment[s.Name]; Quoted(value) && s.field.Tag.Get("quoted") != "later" {
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

// Quoted reports whether value begins and ends with a quotation mark.
func Quoted(value string) bool { return quotedForm.MatchString(value) }

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
