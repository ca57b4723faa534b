package runtime

import (
	"bytes"
	"reflect"
	"testing"

	"github.com/squirefs/squire/runtime/gpu"
)

// A field that order.Fields forgot would not reach the init stage.
func TestOrderIsComplete(t *testing.T) {
	var in, out order
	fill(t, reflect.ValueOf(&in).Elem())
	var b bytes.Buffer
	if err := writeMessage(&b, &in); err != nil {
		t.Fatal(err)
	}
	if err := readMessage(&b, &out); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(in, out) {
		t.Errorf("sent %+v, received %+v", in, out)
	}
}

// fill gives every field a value that is not zero.
func fill(t *testing.T, v reflect.Value) {
	t.Helper()
	switch v.Kind() {
	case reflect.String:
		v.SetString("\xff\n")
	case reflect.Int:
		v.SetInt(7)
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		for i := range v.Len() {
			fill(t, v.Index(i))
		}
	case reflect.Struct:
		for i := range v.NumField() {
			fill(t, v.Field(i))
		}
	case reflect.Pointer:
		if v.Type() != reflect.TypeFor[*gpu.Set]() { // that one is in the plan
			t.Fatalf("a pointer of type %v", v.Type())
		}
	default:
		t.Fatalf("a field of kind %v", v.Kind())
	}
}
