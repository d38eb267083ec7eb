package form

import (
	"errors"
	"fmt"
	"net/http"

	"cats.example/shared/apierror"
)

// Errors of this package. Errors with the same code differ in their details.
var (
	ErrMissingFile = &apierror.Error{Code: "missing_file", Status: http.StatusUnprocessableEntity, Detail: `the picture is missing: send multipart/form-data with the picture in the field "file", or PUT the picture itself`}
	ErrTwoFiles    = &apierror.Error{Code: "two_files", Status: http.StatusUnprocessableEntity, Detail: `the form has more than one field "file"; nothing was stored`}
	ErrMalformed   = &apierror.Error{Code: "malformed_form", Status: http.StatusBadRequest, Detail: "the form is malformed; nothing was stored"}
)

var (
	errNoFileChosen   = ErrMissingFile.WithDetail(`no file was chosen: the field "file" has no file name and no content`)
	errFileIsText     = ErrMissingFile.WithDetail(`the field "file" is text: send it as a file, with a file name`)
	errAfterFile      = apierror.ErrInvalidArgument.WithDetail("more than 64 KiB follow the file in the form: send the other fields before the file; nothing was stored")
	errFieldsTooLarge = errors.New("the fields besides the file are too large")
	errBodyEnd        = errors.New("the body has ended") // in place of io.EOF
)

// malformed returns ErrMalformed with the detail reason. The detail, but not the log, also has shown, a piece of the form.
func malformed(reason, shown string) error {
	return ErrMalformed.WithDetail(reason + shown + "; nothing was stored").Wrap(errors.New(reason))
}

// missingFile returns ErrMissingFile with the detail reason and the names of the first fields, which the log does not get.
func missingFile(reason string, names []string) error {
	if len(names) == 0 {
		return ErrMissingFile
	}
	detail := fmt.Sprintf(`%s; its first fields are %.40q; the picture must be a file in the field "file"`, reason, names)
	return ErrMissingFile.WithDetail(detail).Wrap(errors.New("the picture is missing from the form"))
}
