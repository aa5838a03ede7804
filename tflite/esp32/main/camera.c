/* The board (../../micro/board.h): a camera of 320x240 pixels, results on the serial port. */
#include "board.h"
#include "camera_pins.h"
#include "esp32.h"
#include "esp_camera.h"
#include "esp_log.h"

static const char *const TAG = "sky";

enum {
  FRAMES_TO_SETTLE = 20, /* after the start, until exposure and white balance are right */
  FRAMES_KEPT = 1        /* frames that the driver took right after the last one: too old */
};

static int frames_to_skip = FRAMES_TO_SETTLE;

int camera_start(void) {
  const camera_config_t config = {
      .pin_pwdn = PIN_PWDN,
      .pin_reset = PIN_RESET,
      .pin_xclk = PIN_XCLK,
      .pin_sccb_sda = PIN_SIOD,
      .pin_sccb_scl = PIN_SIOC,
      .pin_d7 = PIN_D7,
      .pin_d6 = PIN_D6,
      .pin_d5 = PIN_D5,
      .pin_d4 = PIN_D4,
      .pin_d3 = PIN_D3,
      .pin_d2 = PIN_D2,
      .pin_d1 = PIN_D1,
      .pin_d0 = PIN_D0,
      .pin_vsync = PIN_VSYNC,
      .pin_href = PIN_HREF,
      .pin_pclk = PIN_PCLK,
      .xclk_freq_hz = 20000000,
      .ledc_timer = LEDC_TIMER_0,
      .ledc_channel = LEDC_CHANNEL_0,
      .pixel_format = PIXFORMAT_RGB565,
      .frame_size = FRAMESIZE_QVGA,
      .fb_count = FRAMES_KEPT,
      .fb_location = CAMERA_FB_IN_PSRAM,
      .grab_mode = CAMERA_GRAB_WHEN_EMPTY,
  };
  const esp_err_t error = esp_camera_init(&config);
  if (error == ESP_OK) return 1;
  ESP_LOGE(TAG, "no camera: %s; is the right board chosen in menuconfig?", esp_err_to_name(error));
  return 0;
}

int board_capture(sky_input *input) {
  for (; frames_to_skip > 0; --frames_to_skip) {
    camera_fb_t *old = esp_camera_fb_get();
    if (old == NULL) return 0;
    esp_camera_fb_return(old);
  }
  camera_fb_t *frame = esp_camera_fb_get();
  frames_to_skip = FRAMES_KEPT;
  if (frame == NULL) return 0;
  int done = 0;
  if (frame->format == PIXFORMAT_RGB565 && frame->len == 2 * frame->width * frame->height) {
    done = sky_input_frame(input, SKY_RGB565_BIG_ENDIAN, frame->width, frame->height, frame->buf);
  }
  esp_camera_fb_return(frame);
  return done;
}

void board_show(const uint8_t *mask, uint32_t width, uint32_t height, const sky_cover *cover) {
  ESP_LOGI(TAG, "cloud cover %d.%d %%, %d okta", (int)cover->permille / 10,
           (int)cover->permille % 10, (int)cover->okta);
  web_show(mask, width, height, cover);
}

void board_cannot_tell(const char *reason) {
  ESP_LOGW(TAG, "cannot tell: %s", reason);
  web_cannot_tell(reason);
}
