package web

import (
	"errors"
	"fmt"
	"mime"
	"net/http"
	"strings"
)

// parseParams splits v, a Content-Type or Content-Disposition field, into its first word and its parameters, both with
// names in lower case, as [mime.ParseMediaType] does.
//
// It also accepts what old and simple clients send: unquoted values with any characters up to the next semicolon, quotes
// inside a quoted value, empty parameters, and words without a value, which it ignores. The first word is valid even if there
// is an error.
func parseParams(v string) (word string, params map[string]string, err error) {
	if word, params, err = mime.ParseMediaType(v); err == nil {
		return word, params, nil
	}
	word, _, _ = strings.Cut(v, ";")
	word, params = strings.ToLower(strings.TrimSpace(word)), map[string]string{}
	for v = strings.TrimSpace(v); v != ""; {
		param, rest, _ := strings.Cut(v, ";")
		name, value, valued := strings.Cut(param, "=")
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
		if other, exists := params[name]; exists && valued && other != value {
			return word, nil, errors.New("a parameter has two different values")
		}
		if valued {
			params[name] = value
		}
		v = rest
	}
	return word, params, nil
}

// field is what the header of a part says of its content.
type field struct {
	name  string
	file  bool // whether it holds a file
	named bool // whether the file has a name
}

// fieldOf reads the Content-Disposition of a part, RFC 7578 section 4.2. A field holds a file if it has a file name, even
// an empty one or one that cannot be decoded, or a Content-Type other than text. The error is errMalformedForm and shows
// the Content-Disposition to the client, but not to the log, because of the file name.
func fieldOf(h http.Header) (field, error) {
	line := list(h, "Content-Disposition")
	_, params, err := parseParams(line)
	name, ok := params["name"]
	var fault string
	switch {
	case len(h.Values("Content-Disposition")) != 1:
		fault = "a part of the form has no Content-Disposition, or more than one"
	case err != nil:
		fault = "the Content-Disposition of a part cannot be parsed: " + err.Error()
	case !ok:
		fault = "the Content-Disposition of a part has no name"
	}
	if fault != "" {
		return field{}, malformed(fault, fmt.Sprintf("; the part has the Content-Disposition %.200q", line))
	}
	fileName, file := params["filename"]
	contentType := strings.ToLower(h.Get("Content-Type"))
	noText := contentType != "" && !strings.HasPrefix(contentType, "text/")
	file = file || noText || strings.Contains(strings.ToLower(line), "filename*") // which mime leaves out if it cannot decode it
	return field{name, file, fileName != ""}, nil
}
