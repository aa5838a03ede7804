// The application as an Arduino sketch: a folder `sky` with this file, sky.c, sky.h, sky_app.cc,
// sky_app.h, board.h, ddunet_model.c, ddunet_model.h and a file of your own with board.h's functions.

#include "sky_app.h"

static bool ready = false;

void setup() {
  Serial.begin(115200);
  ready = sky_setup();  // says in one line what is wrong
}

void loop() {
  if (ready) sky_loop();
  delay(1000);
}
