package web

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"unicode"
)

// errDuplicateParam and errUnterminated are the reasons of parseParams.
var (
	errDuplicateParam = errors.New("a parameter has two different values")
	errUnterminated   = errors.New("a quoted value has no end")
)

// parseParams splits v, a Content-Type or Content-Disposition field, into its first word and its parameters, both with
// names in lower case. What [mime.ParseMediaType] accepts has the same result, except that parameters of RFC 2231 keep the
// star in their name and are not decoded.
//
// It also accepts what old and simple clients send: unquoted values with any characters up to the next semicolon, quotes
// inside a quoted value, empty parameters, and words without a value, which it ignores. The error is errDuplicateParam or
// errUnterminated; the first word is valid even then.
func parseParams(v string) (word string, params map[string]string, err error) {
	params = map[string]string{}
	for first := true; v != ""; first = false {
		i := strings.IndexAny(v, "=;")
		if i < 0 || v[i] == ';' {
			bare, rest, _ := strings.Cut(v, ";")
			if first {
				word = strings.ToLower(strings.TrimSpace(bare))
			}
			v = rest
			continue
		}
		name, value := strings.ToLower(strings.TrimSpace(v[:i])), ""
		v = strings.TrimLeftFunc(v[i+1:], unicode.IsSpace)
		if strings.HasPrefix(v, `"`) {
			var ok bool
			if value, v, ok = unquote(v); !ok {
				return word, params, errUnterminated
			}
		} else {
			value, v, _ = strings.Cut(v, ";")
			value = strings.TrimSpace(value)
		}
		if other, exists := params[name]; exists && other != value {
			return word, params, errDuplicateParam
		}
		params[name] = value
	}
	return word, params, nil
}

// nextParam matches a parameter with a quoted value. Some clients write no semicolon before it.
var nextParam = regexp.MustCompile(`^[A-Za-z0-9*_-]+="`)

// unquote returns the value of the quoted string at the start of v, and the text after the next semicolon. The string ends at a
// quote before a semicolon, the end of v, or white space and the next parameter. A backslash escapes what it has to escape, as in [mime.ParseMediaType], and is
// otherwise a part of a Windows path.
func unquote(v string) (value, rest string, ok bool) {
	var b strings.Builder
	for i := 1; i < len(v); i++ {
		switch v[i] {
		case '"':
			after := strings.TrimLeftFunc(v[i+1:], unicode.IsSpace)
			if after == "" || after[0] == ';' || after != v[i+1:] && nextParam.MatchString(after) {
				return b.String(), strings.TrimPrefix(after, ";"), true
			}
		case '\\':
			if i+1 < len(v) && strings.IndexByte(`()<>@,;:\"/[]?=`, v[i+1]) >= 0 && v[i+1:] != `"` {
				i++
			}
		}
		b.WriteByte(v[i])
	}
	return "", "", false
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
	var lines []string
	for name, values := range h { // some clients write white space before the colon
		if strings.EqualFold(strings.TrimSpace(name), "Content-Disposition") {
			lines = append(lines, values...)
		}
	}
	fail := func(reason string) (field, error) {
		return field{}, malformed(reason, fmt.Sprintf("; the part has the Content-Disposition %.200q", strings.Join(lines, ", ")))
	}
	switch len(lines) {
	case 0:
		return field{}, malformed("a part of the form has no Content-Disposition", "")
	case 1:
	default:
		return fail("a part of the form has more than one Content-Disposition")
	}
	_, params, err := parseParams(lines[0])
	if err != nil {
		return fail("the Content-Disposition of a part cannot be parsed: " + err.Error())
	}
	var f field
	name, plain := params["name"]
	encoded, extended := params["name*"] // old Python libraries send it for names outside ASCII
	if extended {
		_, encoded, _ = strings.Cut(encoded, "'")
		_, encoded, _ = strings.Cut(encoded, "'")
		if f.name, err = url.PathUnescape(encoded); err != nil || plain && f.name != name {
			return fail("the name in the Content-Disposition of a part is not clear")
		}
	} else if f.name = name; !plain {
		return fail("the Content-Disposition of a part has no name")
	}
	contentType := strings.ToLower(h.Get("Content-Type"))
	f.file = contentType != "" && !strings.HasPrefix(contentType, "text/")
	for name, value := range params {
		if name == "filename" {
			f.file, f.named = true, f.named || value != ""
		} else if strings.HasPrefix(name, "filename*") {
			f.file, f.named = true, f.named || !strings.HasSuffix("'"+value, "'")
		}
	}
	return f, nil
}
