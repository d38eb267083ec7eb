package form

import (
	"errors"
	"fmt"
	"mime"
	"net/http"
	"strings"
)

// field describes a part of a form by the header of the part.
type field struct {
	name  string
	file  bool // whether it holds a file
	named bool // whether the file has a name
}

// parseField reads the Content-Disposition of a part (RFC 7578 section 4.2). A field holds a file if it has a file name, even
// an empty one or one that cannot be decoded, or a Content-Type other than text. The error is ErrMalformed. Its detail shows the
// Content-Disposition; the log does not get it, because it contains the file name.
func parseField(h http.Header) (field, error) {
	line := strings.Join(h.Values("Content-Disposition"), ", ")
	_, params, err := parseParams(line)
	name, ok := params["name"]
	var reason string
	switch {
	case len(h.Values("Content-Disposition")) != 1:
		reason = "a part of the form has no Content-Disposition, or more than one"
	case err != nil:
		reason = "the Content-Disposition of a part cannot be parsed: " + err.Error()
	case !ok:
		reason = "the Content-Disposition of a part has no name"
	}
	if reason != "" {
		return field{}, malformed(reason, fmt.Sprintf("; the part has the Content-Disposition %.200q", line))
	}
	fileName, file := params["filename"]
	contentType := strings.ToLower(h.Get("Content-Type"))
	binary := contentType != "" && !strings.HasPrefix(contentType, "text/")
	undecoded := strings.Contains(strings.ToLower(line), "filename*") // mime omits a parameter that it cannot decode
	return field{name, file || binary || undecoded, fileName != ""}, nil
}

// parseParams splits v, a Content-Type or Content-Disposition field, into its first word and its parameters. Both have names in
// lower case, as in [mime.ParseMediaType].
//
// In addition, it accepts syntax that old and simple clients send: unquoted values with any characters up to the next semicolon,
// quotes inside a quoted value, empty parameters, and words without a value, which it ignores. The first word is valid even if
// there is an error.
func parseParams(v string) (word string, params map[string]string, err error) {
	if word, params, err = mime.ParseMediaType(v); err == nil {
		return word, params, nil
	}
	word, _, _ = strings.Cut(v, ";")
	word, params = strings.ToLower(strings.TrimSpace(word)), map[string]string{}
	for v = strings.TrimSpace(v); v != ""; {
		param, rest, _ := strings.Cut(v, ";")
		name, value, hasValue := strings.Cut(param, "=")
		if value = strings.TrimSpace(value); strings.HasPrefix(value, `"`) {
			_, quoted, _ := strings.Cut(v, `"`)
			var ok bool
			if value, rest, ok = strings.Cut(quoted, `";`); !ok {
				value, ok = strings.CutSuffix(quoted, `"`)
			}
			if !ok {
				return word, nil, errors.New("a quoted value has no end")
			}
		}
		name = strings.ToLower(strings.TrimSpace(name))
		if other, exists := params[name]; exists && hasValue && other != value {
			return word, nil, errors.New("a parameter has two different values")
		}
		if hasValue {
			params[name] = value
		}
		v = rest
	}
	return word, params, nil
}
