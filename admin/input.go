package admin

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"reflect"
	"strconv"
	"strings"
	"time"
)

// An operation's input is a struct. A field with the tag path stands in the operation's path, one with the tag query in the URL
// behind it, the others in the JSON body.

// decode fills in from a request.
func decode(w http.ResponseWriter, r *http.Request, path string, in any) error {
	limit := int64(maxBody)
	if path == "/v1/leaked" {
		limit = maxText
	}
	v := reflect.ValueOf(in).Elem()
	if hasBody(v.Type()) {
		d := json.NewDecoder(http.MaxBytesReader(w, r.Body, limit))
		d.DisallowUnknownFields()
		if err := d.Decode(in); err != nil {
			return fmt.Errorf("the body cannot be read: %w", err)
		}
		if _, err := d.Token(); err != io.EOF {
			return fmt.Errorf("the body is more than one JSON value")
		}
	}
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return fmt.Errorf("the query cannot be read")
	}
	for i := range v.NumField() {
		f := v.Type().Field(i)
		name, text := f.Tag.Get("path"), ""
		if name != "" {
			text = r.PathValue(name)
		} else if name = f.Tag.Get("query"); name != "" {
			if text = query.Get(name); len(query[name]) > 1 {
				return fmt.Errorf("%s is there twice", name)
			}
			query.Del(name)
		}
		if name == "" || text == "" {
			continue
		}
		if err := setText(v.Field(i), text); err != nil {
			return fmt.Errorf("%s: %q cannot be read", name, text)
		}
	}
	for name := range query { // a filter with a typo must not select everything
		return fmt.Errorf("%q is no parameter of this operation", name)
	}
	return nil
}

func hasBody(t reflect.Type) bool {
	for i := range t.NumField() {
		if f := t.Field(i); f.Tag.Get("path") == "" && f.Tag.Get("query") == "" {
			return true
		}
	}
	return false
}

func setText(v reflect.Value, text string) (err error) {
	switch p := v.Addr().Interface().(type) {
	case *time.Time:
		*p, err = time.Parse(time.RFC3339Nano, text)
	case *int:
		*p, err = strconv.Atoi(text)
	case *bool:
		*p, err = strconv.ParseBool(text)
	default:
		v.SetString(text)
	}
	return err
}

func textOf(v reflect.Value) string {
	switch x := v.Interface().(type) {
	case time.Time:
		return x.UTC().Format(time.RFC3339Nano)
	default:
		return fmt.Sprint(x)
	}
}

// encode is the other side of decode: the URL and the body of a request.
func encode(path string, in any) (string, []byte, error) {
	v := reflect.ValueOf(in)
	query := url.Values{}
	for i := range v.NumField() {
		f := v.Type().Field(i)
		if name := f.Tag.Get("path"); name != "" {
			text := textOf(v.Field(i))
			if text == "" || text == "." || text == ".." {
				return "", nil, fmt.Errorf("%q is no %s", text, name)
			}
			path = strings.Replace(path, "{"+name+"}", url.PathEscape(text), 1)
		} else if name := f.Tag.Get("query"); name != "" && !v.Field(i).IsZero() {
			query.Set(name, textOf(v.Field(i)))
		}
	}
	if len(query) > 0 {
		path += "?" + query.Encode()
	}
	if !hasBody(v.Type()) {
		return path, nil, nil
	}
	body, err := json.Marshal(in)
	return path, body, err
}
